// SPDX-License-Identifier: Apache-2.0

// Package gateway forwards the requests of any registry client to a registry
// so that its uploads resume. It is an http.Handler over the transport of
// resume.NewTransport.
//
// A client's request reaches the registry with the method, the path, the query,
// the headers and the credentials that the client gave it. Bodies stream in both
// directions. An upload is answered when the registry has the bytes, and a commit
// when the registry has committed: the gateway confirms, it never stores and
// hopes.
package gateway
