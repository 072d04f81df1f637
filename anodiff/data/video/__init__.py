"""Clips: video files, folders of frames, streams and cameras, one frame at a time; data sets of clips."""
