"""Connection to Ray: starting or joining a cluster, its free resources, and how commands divide them."""
