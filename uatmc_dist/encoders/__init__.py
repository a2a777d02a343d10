"""What turns photos and texts into features: models of well-kept libraries (extra `encode`), and a cache of what they
said."""
