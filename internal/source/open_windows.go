package source

// nonblock keeps opening a named pipe from waiting for its other end.
const nonblock = 0
