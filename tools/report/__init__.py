"""Reports for people: the map of an image, and the page that shows it. Built on the second reader alone."""
