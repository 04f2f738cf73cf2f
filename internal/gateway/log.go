// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"io"
	"log"

	"github.com/sirupsen/logrus"
)

// quiet takes what net/http says about connections: it may quote headers.
var quiet = log.New(io.Discard, "", 0)

func (g *Gateway) log() logrus.FieldLogger { return g.o.Logger }
