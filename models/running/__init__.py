"""Is the machine running? What `fine_tune` reaches from a handful of pictures, on simulated machines before real photographs."""
