// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
)

// spdx is the part of an SPDX 2.3 document that a release needs.
type spdx struct {
	Version       string         `json:"spdxVersion"`
	DataLicense   string         `json:"dataLicense"`
	ID            string         `json:"SPDXID"`
	Name          string         `json:"name"`
	Namespace     string         `json:"documentNamespace"`
	CreationInfo  creationInfo   `json:"creationInfo"`
	Packages      []spdxPackage  `json:"packages"`
	Relationships []relationship `json:"relationships"`
}

type creationInfo struct {
	Created  string   `json:"created"`
	Creators []string `json:"creators"`
}

type spdxPackage struct {
	ID               string        `json:"SPDXID"`
	Name             string        `json:"name"`
	Version          string        `json:"versionInfo"`
	DownloadLocation string        `json:"downloadLocation"`
	FilesAnalyzed    bool          `json:"filesAnalyzed"`
	LicenseConcluded string        `json:"licenseConcluded"`
	LicenseDeclared  string        `json:"licenseDeclared"`
	Copyright        string        `json:"copyrightText"`
	Purpose          string        `json:"primaryPackagePurpose,omitempty"`
	Refs             []externalRef `json:"externalRefs,omitempty"`
}

type externalRef struct {
	Category string `json:"referenceCategory"`
	Type     string `json:"referenceType"`
	Locator  string `json:"referenceLocator"`
}

type relationship struct {
	Element string `json:"spdxElementId"`
	Type    string `json:"relationshipType"`
	Related string `json:"relatedSpdxElement"`
}

const noAssertion = "NOASSERTION"

// billOfMaterials writes what modules the binaries are made of, as the binaries
// themselves say.
func (r *release) billOfMaterials() error {
	modules := map[string]string{} // version by path
	for _, t := range r.targets {
		info, err := buildinfo.ReadFile(r.binary(t))
		if err != nil {
			return err
		}
		modules["stdlib"] = strings.TrimPrefix(info.GoVersion, "go")
		for _, m := range info.Deps {
			if m.Replace != nil {
				m = m.Replace
			}
			modules[m.Path] = m.Version
		}
	}
	product := spdxPackage{
		ID: "SPDXRef-rpush", Name: "github.com/rpush-go/rpush", Version: r.version, DownloadLocation: home,
		LicenseConcluded: "Apache-2.0", LicenseDeclared: "Apache-2.0", Copyright: noAssertion, Purpose: "APPLICATION",
		Refs: []externalRef{{"PACKAGE-MANAGER", "purl", "pkg:golang/github.com/rpush-go/rpush@v" + r.version}},
	}
	doc := spdx{
		Version: "SPDX-2.3", DataLicense: "CC0-1.0", ID: "SPDXRef-DOCUMENT", Name: "rpush-" + r.version,
		CreationInfo:  creationInfo{r.time.Format("2006-01-02T15:04:05Z"), []string{"Organization: rpush", "Tool: rpush-release"}},
		Packages:      []spdxPackage{product},
		Relationships: []relationship{{"SPDXRef-DOCUMENT", "DESCRIBES", product.ID}},
	}
	content := sha256.New() // the namespace has to be unique to the document
	fmt.Fprintf(content, "%s %s\n", r.version, r.commit)
	paths := make([]string, 0, len(modules))
	for p := range modules {
		paths = append(paths, p)
	}
	slices.Sort(paths)
	for i, path := range paths {
		fmt.Fprintf(content, "%s %s\n", path, modules[path])
		p := spdxPackage{
			ID: fmt.Sprintf("SPDXRef-module-%d", i+1), Name: path, Version: modules[path], DownloadLocation: noAssertion,
			LicenseConcluded: noAssertion, LicenseDeclared: noAssertion, Copyright: noAssertion, Purpose: "LIBRARY",
			Refs: []externalRef{{"PACKAGE-MANAGER", "purl", "pkg:golang/" + path + "@" + modules[path]}},
		}
		doc.Packages = append(doc.Packages, p)
		doc.Relationships = append(doc.Relationships, relationship{product.ID, "DEPENDS_ON", p.ID})
	}
	doc.Namespace = home + "/spdx/" + r.version + "-" + hex.EncodeToString(content.Sum(nil))[:32]
	return writeFile(filepath.Join(r.out, r.base()+".spdx.json"), func(w io.Writer) error {
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(doc)
	})
}
