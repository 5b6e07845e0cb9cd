"""Sources: everything that brings readings or pictures in. Each is a `gateway.contract.Source`."""
