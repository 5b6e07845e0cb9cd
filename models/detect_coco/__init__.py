"""Objects on a picture, COCO's 80 kinds: people, vehicles, animals and things."""
