// SPDX-License-Identifier: Apache-2.0

package architecture

import (
	"bytes"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/printer"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write what the packages export to testdata")

// What the libraries export is written down. A line that disappears or changes
// breaks programs that compile today: it takes a new major version. A new line
// is a promise from then on.
func TestAPI(t *testing.T) {
	for _, name := range []string{"resume", "resume/slogger", "resume/storetest", "pusher"} {
		got, golden := exported(t, filepath.Join("..", "..", name)), filepath.Join("testdata", filepath.Base(name)+".api")
		if *update {
			if err := os.WriteFile(golden, []byte(strings.Join(got, "\n")+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		b, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		want := strings.Split(strings.TrimSpace(string(b)), "\n")
		for _, l := range want {
			if !slices.Contains(got, l) {
				t.Errorf("%s no longer exports, which breaks its users:\n\t%s", name, l)
			}
		}
		for _, l := range got {
			if kind, _, _ := strings.Cut(l, " "); kind != "var" && (strings.Contains(l, "wire.") || strings.Contains(l, "protocol.")) {
				t.Errorf("%s shows what is internal:\n\t%s", name, l)
			}
			if !slices.Contains(want, l) {
				t.Errorf("%s exports what is not written down (go test ./internal/architecture -update):\n\t%s", name, l)
			}
		}
	}
}

// exported is a line for every name, with its type: constants with their
// values, the fields of structs and the methods of interfaces one by one.
func exported(t *testing.T, dir string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%s: %v, %d files", dir, err, len(files))
	}
	fset := token.NewFileSet()
	text := func(n any) string {
		var b bytes.Buffer
		if err := printer.Fprint(&b, fset, n); err != nil {
			t.Fatal(err)
		}
		return strings.Join(strings.Fields(b.String()), " ")
	}
	var lines []string
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(fset, name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.FileExports(f)
		for _, d := range f.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				if d.Recv != nil && !ast.IsExported(strings.TrimLeft(text(d.Recv.List[0].Type), "*")) {
					continue
				}
				d.Body = nil
				lines = append(lines, text(d))
			case *ast.GenDecl:
				for _, s := range d.Specs {
					lines = append(lines, spec(d.Tok, s, text)...)
				}
			}
		}
	}
	slices.Sort(lines)
	return slices.Compact(lines)
}

func spec(tok token.Token, s ast.Spec, text func(any) string) (lines []string) {
	ts, ok := s.(*ast.TypeSpec)
	if !ok {
		if tok != token.IMPORT {
			lines = append(lines, tok.String()+" "+text(s))
		}
		return lines
	}
	var members *ast.FieldList
	switch of := ts.Type.(type) {
	case *ast.StructType:
		lines, members = append(lines, "type "+ts.Name.Name+" struct"), of.Fields
	case *ast.InterfaceType:
		lines, members = append(lines, "type "+ts.Name.Name+" interface"), of.Methods
	default:
		return append(lines, "type "+text(ts))
	}
	for _, m := range members.List {
		for _, n := range m.Names {
			lines = append(lines, fmt.Sprintf("type %s, %s %s", ts.Name.Name, n.Name, text(m.Type)))
		}
		if len(m.Names) == 0 {
			lines = append(lines, fmt.Sprintf("type %s, embedded %s", ts.Name.Name, text(m.Type)))
		}
	}
	return lines
}
