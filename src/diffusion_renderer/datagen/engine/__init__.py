"""From a scene to radiance and G-buffers, with Mitsuba and Open Image Denoise."""
