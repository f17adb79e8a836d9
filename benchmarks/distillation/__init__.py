"""What `make bench NAME=distill` measures with the drafts that it trained."""
