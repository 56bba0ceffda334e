// libpng reports errors by longjmp, which must not cross Swift: this file lies between.

#include <png.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include "Failure.h"

typedef struct {
  const uint8_t *bytes;
  size_t left;
} source;

static void fail(png_structp png, png_const_charp message) {
  cimages_image *image = png_get_error_ptr(png);
  FAIL(image, "%s", message);
  png_longjmp(png, 1);
}

static void ignore(png_structp png, png_const_charp message) {
  (void)png;
  (void)message;
}

static void read_bytes(png_structp png, png_bytep target, size_t count) {
  source *from = png_get_io_ptr(png);
  if (count > from->left) png_error(png, "the file ends too early");
  memcpy(target, from->bytes, count);
  from->bytes += count;
  from->left -= count;
}

/// What setjmp returns to must not live in registers: the caller keeps the pointers.
static int decode(png_structp png, png_infop info, cimages_image *image, png_bytep **rows, uint64_t most_pixels) {
  if (setjmp(png_jmpbuf(png))) return 0;
  png_read_info(png, info);
  image->width = png_get_image_width(png, info);
  image->height = png_get_image_height(png, info);
  if ((uint64_t)image->width * image->height > most_pixels) png_error(png, "the image has too many pixels");
  png_set_expand(png);
  png_set_strip_16(png);
  png_set_strip_alpha(png);
  png_set_interlace_handling(png);
  png_read_update_info(png, info);
  image->channels = png_get_channels(png, info);
  size_t stride = png_get_rowbytes(png, info);
  if (stride != image->width * image->channels) png_error(png, "the image has an unexpected layout");
  image->pixels = malloc(stride * image->height);
  *rows = malloc(sizeof(png_bytep) * image->height);
  if (!image->pixels || !*rows) png_error(png, "there is not enough memory");
  for (size_t y = 0; y < image->height; y++) (*rows)[y] = image->pixels + y * stride;
  png_read_image(png, *rows);
  png_read_end(png, NULL);
  return 1;
}

cimages_image cimages_decode_png(const uint8_t *bytes, size_t count, uint64_t most_pixels) {
  cimages_image image = {0};
  source from = {bytes, count};
  png_bytep *rows = NULL;
  png_infop info = NULL;
  png_structp png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &image, fail, ignore);
  if (png) info = png_create_info_struct(png);
  if (!info) {
    FAIL(&image, "libpng could not start");
  } else {
    png_set_user_limits(png, 0x7fffffff, 0x7fffffff);
    // Comments and profiles may be compressed: they must not unpack to gigabytes.
    png_set_chunk_malloc_max(png, 1 << 24);
    png_set_read_fn(png, &from, read_bytes);
    if (!decode(png, info, &image, &rows, most_pixels)) cimages_free(&image);
  }
  png_destroy_read_struct(&png, &info, NULL);
  free(rows);
  return image;
}

void cimages_free(cimages_image *image) {
  free(image->pixels);
  image->pixels = NULL;
}
