"""The digests of positions that had none; an empty one says that there is no line end at the position."""
