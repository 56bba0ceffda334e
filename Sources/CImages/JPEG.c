// libjpeg's errors must not return, so they leave by longjmp, which must not cross Swift: this file lies between.

#include <setjmp.h>
#include <stdlib.h>

#include "Failure.h"

#include <jpeglib.h>
// After it, as its macros need that.
#include <jerror.h>

typedef struct {
  struct jpeg_error_mgr base;
  jmp_buf place;
  cimages_image *image;
} failure;

static void leave(j_common_ptr decoder) {
  failure *own = (failure *)decoder->err;
  char message[JMSG_LENGTH_MAX];
  (*decoder->err->format_message)(decoder, message);
  FAIL(own->image, "%s", message);
  longjmp(own->place, 1);
}

/// Warnings are printed by the library, and a truncated file is filled with grey: here it is an error.
static void heed(j_common_ptr decoder, int level) {
  int code = decoder->err->msg_code;
  if (level < 0 && (code == JWRN_JPEG_EOF || code == JWRN_HIT_MARKER)) leave(decoder);
}

/// Each scan of a progressive file is cheap to write and costs a pass over the whole image.
static void watch(j_common_ptr decoder) {
  if (decoder->is_decompressor && ((j_decompress_ptr)decoder)->input_scan_number > 200) {
    failure *own = (failure *)decoder->err;
    FAIL(own->image, "the file has more than 200 scans");
    longjmp(own->place, 1);
  }
}

static void decode(j_decompress_ptr decoder, const uint8_t *bytes, size_t count, uint64_t most_pixels, cimages_image *image) {
  failure *own = (failure *)decoder->err;
  struct jpeg_progress_mgr progress = {0};
  progress.progress_monitor = watch;
  if (setjmp(own->place)) {
    cimages_free(image);
    return;
  }
  jpeg_create_decompress(decoder);
  decoder->progress = &progress;
  jpeg_mem_src(decoder, bytes, count);
  jpeg_read_header(decoder, TRUE);
  image->width = decoder->image_width;
  image->height = decoder->image_height;
  if ((uint64_t)image->width * image->height > most_pixels) {
    FAIL(image, "the image has too many pixels (%zu×%zu)", image->width, image->height);
    return;
  }
  if (decoder->jpeg_color_space == JCS_CMYK || decoder->jpeg_color_space == JCS_YCCK) {
    FAIL(image, "the image is in CMYK; convert it to RGB");
    return;
  }
  decoder->out_color_space = decoder->jpeg_color_space == JCS_GRAYSCALE ? JCS_GRAYSCALE : JCS_RGB;
  jpeg_start_decompress(decoder);
  image->channels = decoder->output_components;
  image->pixels = malloc(image->width * image->height * image->channels);
  if (!image->pixels) {
    FAIL(image, "there is not enough memory");
    return;
  }
  while (decoder->output_scanline < decoder->output_height) {
    JSAMPROW row = image->pixels + (size_t)decoder->output_scanline * image->width * image->channels;
    jpeg_read_scanlines(decoder, &row, 1);
  }
  jpeg_finish_decompress(decoder);
}

cimages_image cimages_decode_jpeg(const uint8_t *bytes, size_t count, uint64_t most_pixels) {
  cimages_image image = {0};
  struct jpeg_decompress_struct decoder = {0};
  failure own = {.image = &image};
  decoder.err = jpeg_std_error(&own.base);
  own.base.error_exit = leave;
  own.base.emit_message = heed;
  decode(&decoder, bytes, count, most_pixels, &image);
  jpeg_destroy_decompress(&decoder);
  return image;
}
