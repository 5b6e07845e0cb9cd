"""Objects on a picture: people, animals, vehicles, boxes and some furniture."""
