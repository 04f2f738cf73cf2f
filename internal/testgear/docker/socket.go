// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"cmp"
	"os"
	"strings"
)

// Host is where the docker command finds the engine, contexts aside.
func Host() string { return cmp.Or(os.Getenv("DOCKER_HOST"), "unix:///var/run/docker.sock") }

// Socket is the path of the engine's socket; of another kind of address it is
// nothing that could be dialled.
func Socket() string { return strings.TrimPrefix(Host(), "unix://") }
