#ifndef CIMAGES_FAILURE_H
#define CIMAGES_FAILURE_H

#include <stdio.h>

#include "CImages.h"

/// Puts the message into the image, as if printed.
#define FAIL(image, ...) ((void)snprintf((image)->message, sizeof((image)->message), __VA_ARGS__))

#endif
