"""Models: bundles, the worker that runs them, and the engine that supervises it."""
