// SPDX-License-Identifier: Apache-2.0

// Package nft reads the rules of nf_tables, which are also those of
// iptables-nft, from the kernel into package rules. Linux only.
package nft
