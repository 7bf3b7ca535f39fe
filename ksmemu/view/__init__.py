"""What watch, top and report make of an instance: samples, page maps, pictures, the page, the screen."""
