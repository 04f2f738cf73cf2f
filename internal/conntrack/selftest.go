package conntrack

// Outcome of a connection that met stray segments.
type Outcome string

// The outcomes; empty where it could not be found out.
const (
	WasReset Outcome = "reset"
	Survived Outcome = "survived"
)

// SelfTestCommand is the hidden verb that a self-test calls its own program
// with.
const SelfTestCommand = "conntrack-selftest"

// SelfTest is the incident rebuilt in network namespaces made for it.
type SelfTest struct {
	// Delayed is what segments far behind the window did, Beyond those far
	// ahead of it.
	Delayed Outcome `json:"delayed,omitempty"`
	Beyond  Outcome `json:"beyond,omitempty"`
	// The counters that moved, of the namespace that translated.
	Invalid uint64 `json:"invalid"`
	OutRsts uint64 `json:"outRsts"`
	// Error says why nothing, or not all, was found out.
	Error string `json:"error,omitempty"`
}

func (t *SelfTest) check(r *Report) Check {
	c := Check{Name: "self-test", Verdict: Sound, Command: "rpush doctor --selftest"}
	words := map[Outcome]string{WasReset: "reset the connection", Survived: "did no harm", "": "were not tried"}
	c.Finding = "on this kernel delayed segments " + words[t.Delayed] + ", those beyond the window " + words[t.Beyond]
	switch {
	case t.Error != "":
		c.Verdict, c.Finding = Unknown, t.Error
	case (t.Delayed == WasReset || t.Beyond == WasReset) && r.Where == Here && r.exposed && !r.liberal:
		c.Verdict = AtRisk
	}
	return c
}
