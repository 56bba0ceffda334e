#ifndef CIMAGES_H
#define CIMAGES_H

#include <stddef.h>
#include <stdint.h>

/// A decoded image of 8 bits a channel, or why there is none.
typedef struct {
  /// Row by row; to be freed with cimages_free. NULL when decoding failed.
  uint8_t *pixels;
  size_t width;
  size_t height;
  /// 1 (grey) or 3 (red, green, blue).
  size_t channels;
  /// The library's message, when decoding failed.
  char message[256];
} cimages_image;

/// Decodes a PNG file in memory. Palettes are expanded, 16 bits cut to 8, transparency and gamma left out, as Pillow's `convert` does.
cimages_image cimages_decode_png(const uint8_t *bytes, size_t count, uint64_t most_pixels);

/// Decodes a JPEG file in memory: grey, or converted to red, green and blue. Truncated files and those in CMYK are refused.
cimages_image cimages_decode_jpeg(const uint8_t *bytes, size_t count, uint64_t most_pixels);

void cimages_free(cimages_image *image);

#endif
