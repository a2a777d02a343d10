"""UAT-MC Dist: recommenders trained at scale to stay honest when photos or texts are tampered with."""
