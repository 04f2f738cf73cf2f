package cli

const (
	gatewayShort = "let the uploads of any other client resume"
	serveShort   = "an endpoint through which other clients push"

	gatewayVerbMissing    = "which of its verbs? rpush gateway serve"
	noGatewayVerb         = "%q is not a verb of rpush gateway: serve"
	upstreamAndRegistry   = "--upstream names the one registry: leave out --registry"
	authfileWithoutSignIn = "--authfile has credentials for --sign-in, which is missing"
	badServeTimeout       = "--header-timeout and --idle-timeout need a positive time, --stop-timeout none below 0"
	publicNeeds           = "%s is not a loopback address: it needs %s"
	oneSocket             = "systemd passed several sockets; the unit needs one ListenStream"
)

const gatewayHelp = `Let the uploads of any other client resume, unchanged.

  rpush gateway serve            an endpoint through which other clients push

rpush gateway serve --help says more.
`

const serveHelp = `Serve an endpoint through which docker, buildkit, containerd, podman and every
other client push and pull. What a broken connection to the registry leaves
behind is continued, and the client does not notice. It ends with SIGTERM.

  rpush gateway serve --upstream REGISTRY
        names are as they are at REGISTRY:
        docker push localhost:5077/team/app:1
  rpush gateway serve
        the first element of a name is its registry, or containerd's ns:
        docker push localhost:5077/registry.example/team/app:1

The client's own credentials go to the registry as they are: docker login
localhost:5077. --sign-in uses those of this user instead, for what --allow
names. Any address that is not loopback needs --cert-file, --key-file and
--htpasswd, and --upstream or --registry; a client's password for the gateway
goes to no registry. /healthz says that it runs, /metrics has figures for
Prometheus.
`
