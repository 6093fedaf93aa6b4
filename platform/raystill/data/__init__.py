"""Object stores, shards, and the streams that read them."""
