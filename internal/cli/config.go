// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/rpush-go/rpush/internal/settings"
)

// configFiles are the system's configuration file and the user's.
func configFiles() (system, user string) {
	system = "/etc/rpush/config.yaml"
	if runtime.GOOS == "windows" {
		system = filepath.Join(os.Getenv("ProgramData"), "rpush", "config.yaml")
	}
	if dir, err := os.UserConfigDir(); err == nil {
		user = filepath.Join(dir, "rpush", "config.yaml")
	}
	return system, user
}

// configKeys are the flags that a configuration file may hold. Passwords and
// tokens belong to docker login, and what is about one image to the command line.
var configKeys = []string{
	"answer-timeout", "authfile", "ca-file", "cache-dir", "cert-dir", "cert-file", "compression", "deadline", "docker-context",
	"docker-host", "insecure", "key-file", "layout-links", "limit-rate", "metrics-file", "mount-from", "no-creds", "no-engine-update", "no-state", "parallel",
	"plain-http", "retry-for", "retry-times", "spool-dir", "stall-timeout", "state-dir", "tls-verify",
}

// registryKeys are those of them that may differ from one registry to another.
var registryKeys = []string{"authfile", "ca-file", "cert-dir", "cert-file", "insecure", "key-file", "no-creds", "plain-http", "tls-verify"}

// gatewayKeys are the flags of gateway serve and gateway run that may be in the
// section gateway, beside configKeys.
var gatewayKeys = []string{
	"accept", "allow", "header-timeout", "htpasswd", "idle-timeout", "listen", "max-requests", "registry", "sign-in", "spool-limit",
	"stop-timeout", "upstream",
}

// pathKeys are files and directories, which are absolute in a configuration file:
// nobody knows where rpush will be called.
var pathKeys = []string{"authfile", "ca-file", "cache-dir", "cert-dir", "cert-file", "htpasswd", "key-file", "layout-links", "metrics-file", "spool-dir", "state-dir"}

const (
	unknownKey   = "unknown key %q; known are %s"
	secretKey    = "%q does not belong in a configuration file: docker login stores credentials"
	relativePath = "%s is %q; a configuration file needs an absolute path"
	fixedValue   = "%s cannot be used: %s is fixed in %s"
	configShort  = "show the settings of the configuration files, and where each comes from"
)

// checkKey checks a value with the flag that it is for.
func checkKey(flags *pflag.FlagSet, known []string) settings.Keys {
	return func(key string, text []string) error {
		f := flags.Lookup(key)
		switch {
		case slices.Contains([]string{"creds", "username", "password-stdin", "registry-token"}, key):
			return fmt.Errorf(secretKey, key)
		case !slices.Contains(known, key) || f == nil:
			return fmt.Errorf(unknownKey, key, strings.Join(known, ", "))
		}
		_, list := f.Value.(pflag.SliceValue)
		if !list && len(text) != 1 {
			return fmt.Errorf("%s takes one value, not a list", key)
		}
		for _, v := range text {
			if slices.Contains(pathKeys, key) && v != "" && !filepath.IsAbs(v) {
				return fmt.Errorf(relativePath, key, v)
			}
		}
		return setFlag(f, text)
	}
}

func setFlag(f *pflag.Flag, text []string) error {
	if list, ok := f.Value.(pflag.SliceValue); ok {
		return list.Replace(text)
	}
	if err := f.Value.Set(text[0]); err != nil {
		return fmt.Errorf("invalid value %q of %s: %w", text[0], f.Name, err)
	}
	return nil
}

// flagsOf are all flags of some groups.
func flagsOf(groups []flagGroup) *pflag.FlagSet {
	all := pflag.NewFlagSet("", pflag.ContinueOnError)
	for _, g := range groups {
		all.AddFlagSet(g.FlagSet)
	}
	return all
}

// readConfig reads the configuration files.
func (a *app) readConfig() (*settings.Settings, error) {
	var push, gateway options
	var serve serveOptions
	var run []string
	served := flagsOf(push.serveFlags(&serve))
	served.AddFlagSet(flagsOf(push.runFlags(&run)))
	push = options{}
	return settings.Load(a.systemConfig, a.userConfig, settings.Schema{
		Push:    checkKey(flagsOf(push.pushFlags()), configKeys),
		Gateway: checkKey(served, slices.Concat(gatewayKeys, configKeys)),
		Fixable: func(key string) bool {
			return flagsOf(gateway.pushFlags()).Lookup(key) != nil && !strings.HasPrefix(key, "src-")
		},
	})
}

// configOrigin annotates a flag that a configuration file has set.
const configOrigin = "rpush_config_origin"

// configure gives the flags of a command what the configuration files say, unless
// a flag or a variable says otherwise. It fails if they do and may not.
func (a *app) configure(cmd *cobra.Command, args []string) error {
	if a.systemConfig == "" && a.userConfig == "" || cmd.Flags().Lookup("ca-file") == nil && cmd.Flags().Lookup("retry-for") == nil {
		return nil // a command that connects to no registry works with a broken file, too
	}
	s, err := a.readConfig()
	if err != nil {
		return err
	}
	target, source := registriesOf(cmd, args)
	values := s.For(target)
	if cmd.HasParent() && cmd.Parent().Name() == "gateway" {
		values = s.Gateway()
	}
	given := map[string]settings.Value{}
	maps.Copy(given, values)
	for key, v := range s.For(source) {
		if slices.Contains(registryKeys, key) || v.Fixed {
			given["src-"+key] = v
		}
	}
	for _, key := range settings.Sorted(given) {
		if err := a.settle(cmd.Flags(), key, given[key]); err != nil {
			return err
		}
	}
	return nil
}

// settle gives one flag its value.
func (a *app) settle(fs *pflag.FlagSet, key string, v settings.Value) error {
	f := fs.Lookup(key)
	if f == nil {
		return nil // of another command
	}
	by := ""
	switch {
	case f.Changed:
		by = "--" + key
	case a.env[envName(key)] != "":
		by = envName(key)
	}
	if by != "" && v.Fixed {
		return fmt.Errorf(fixedValue, by, strings.TrimPrefix(key, "src-"), v.Where())
	}
	if by != "" || v.Text == nil {
		return nil
	}
	if err := setFlag(f, v.Text); err != nil {
		return fmt.Errorf("%s: %w", v.Where(), err)
	}
	origin := fmt.Sprintf("%s in %s", key, v.Where())
	if v.Registry != "" {
		origin = fmt.Sprintf("%s of %s in %s", key, v.Registry, v.Where())
	}
	if v.Fixed {
		origin += fixedSuffix
	}
	return fs.SetAnnotation(key, configOrigin, []string{origin})
}

// registriesOf are those that a command line is about, empty if there is none.
// What is wrong with it, the command itself says.
func registriesOf(cmd *cobra.Command, args []string) (target, source string) {
	if cmd.HasParent() && cmd.Name() != "push" && cmd.Name() != "probe" || len(args) == 0 {
		return "", ""
	}
	of := func(s string) string {
		ref, err := name.ParseReference(strings.TrimPrefix(s, "docker://"), name.WeakValidation)
		if err != nil {
			return ""
		}
		return ref.Context().RegistryStr()
	}
	if len(args) == 2 && strings.HasPrefix(args[0], "docker://") {
		source = of(args[0])
	}
	return of(args[len(args)-1]), source
}

// setting is one line of rpush config.
type setting struct {
	Key   string   `json:"key"`
	Value []string `json:"value"`
	From  string   `json:"from"`
	Fixed bool     `json:"fixed,omitempty"`
}

func (a *app) configCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{Use: "config [REGISTRY]", Short: configShort, Args: cobra.MaximumNArgs(1)}
	cmd.Flags().StringVar(&output, "output", "text", "print the settings as `FORMAT`, text or json")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		spelled, err := fromEnvironment(cmd.Flags(), a.env)
		if err != nil {
			return err
		}
		if spelled["output"] == "--output" && output != "text" && output != "json" {
			return fmt.Errorf("--output is %q, neither text nor json", output)
		}
		registry := ""
		if len(args) == 1 {
			host, _, _ := strings.Cut(strings.TrimPrefix(args[0], "docker://"), "/")
			reg, err := name.NewRegistry(host)
			if err != nil {
				return fmt.Errorf("%q is no registry; one is HOST[:PORT]", args[0])
			}
			registry = reg.RegistryStr()
		}
		s, err := a.readConfig()
		if err != nil {
			return err
		}
		a.exit = a.written(a.showConfig(a.settings(s, registry), output == "json"))
		return nil
	}
	return cmd
}

// settings are what pushes to a registry use, and where it comes from: a file, a
// variable, or the built-in defaults.
func (a *app) settings(s *settings.Settings, registry string) []setting {
	var o options
	flags := flagsOf(o.pushFlags())
	values := s.For(registry)
	keys := slices.Concat(configKeys, slices.Collect(maps.Keys(values)))
	slices.Sort(keys)
	var all []setting
	for _, key := range slices.Compact(keys) {
		v, configured := values[key]
		one := setting{Key: key, Value: []string{}, From: "default", Fixed: v.Fixed}
		if d := flags.Lookup(key).DefValue; d != "" && d != "[]" {
			one.Value = []string{d}
		}
		if configured {
			one.From = v.Where()
			if v.Text != nil {
				one.Value = v.Text
			}
			if v.Registry != "" {
				one.From += " (" + v.Registry + ")"
			}
		}
		if text := a.env[envName(key)]; text != "" && !v.Fixed {
			one.Value, one.From = []string{text}, envName(key)
		}
		all = append(all, one)
	}
	return all
}

func (a *app) showConfig(all []setting, asJSON bool) error {
	if asJSON {
		enc := json.NewEncoder(a.stdout)
		enc.SetIndent("", "  ")
		return enc.Encode(all)
	}
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	_, err := fmt.Fprintln(w, "SETTING\tVALUE\tFROM")
	for _, one := range all {
		from := one.From
		if one.Fixed {
			from += ", fixed"
		}
		_, e := fmt.Fprintf(w, "%s\t%s\t%s\n", one.Key, strings.Join(one.Value, ", "), from)
		err = errors.Join(err, e)
	}
	return errors.Join(err, w.Flush())
}
