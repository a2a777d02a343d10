"""UAT-MC Dist: recommenders trained at scale to stay honest when photos or texts are tampered with."""

__version__ = "0.1.0"
