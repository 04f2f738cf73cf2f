// SPDX-License-Identifier: Apache-2.0

package remedy

import (
	"fmt"
	"os"

	"github.com/rpush-go/rpush/internal/durable"
)

// disk changes files and settings, one operation per method. Tests stop between
// two.
type disk interface {
	durable.Disk
	// Set writes a number to a sysctl.
	Set(name string, v int64) error
}

// systemd reads no file of durable.TempName in the directories of its
// configuration.

type osDisk struct{ durable.OS }

func (osDisk) Set(name string, v int64) error {
	return os.WriteFile(name, fmt.Appendf(nil, "%d\n", v), 0)
}
