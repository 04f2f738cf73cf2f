// Package enginetest pushes images of a real Docker engine to a real registry.
package enginetest
