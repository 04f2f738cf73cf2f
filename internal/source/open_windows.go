// SPDX-License-Identifier: Apache-2.0

package source

// nonblock keeps opening a named pipe from waiting for its other end.
const nonblock = 0
