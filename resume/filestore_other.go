//go:build !unix

package resume

const noFollow = 0

// private has nothing to do: the user's own directories are private there.
func (s *FileStore) private() error { return nil }

func owned(string) error { return nil }

// SyncDir has nothing to do: renames are journalled.
func (osDisk) SyncDir(string) error { return nil }
