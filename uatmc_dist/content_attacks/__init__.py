"""Promotion attacks on the photos and the words themselves, judged by the files that a seller could upload."""
