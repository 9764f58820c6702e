"""Where pages go that the cache has no room for: host memory, a swap file, a folder that outlives the process."""
