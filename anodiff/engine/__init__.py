"""The machinery under every job: device, precision, one internal batch shape, the loop, the crash-safe store, progress.

Nothing is imported here, so that a command can show its help before torch is loaded.
"""
