# SPDX-License-Identifier: GPL-2.0-only
# What people and developers type. `make` lists it.
export PATH := $(if $(XDG_CACHE_HOME),$(XDG_CACHE_HOME),$(HOME)/.cache)/vexfs/tools/bin:$(HOME)/.cargo/bin:$(PATH)
.PHONY: help build demo test test-full suite vm kcheck bench fmt clippy doc install clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed 's/:.*## /\t/' | expand -t 12

build: ## the programs, optimised, in target/release
	@.ci/need build
	cargo build --release -q -p vexfs-cli -p vexfs-fuse
	@ln -sf vexfs target/release/mkfs.vexfs
	@ln -sf vexfs target/release/fsck.vexfs
	@ln -sf mount-fuse-vexfs target/release/mount.fuse.vexfs

demo: build ## store, search, crash and recover real files and embeddings
	@cli/demo.py

test: ## all test suites; installs what they need
	@.ci/need
	@.ci/suites

test-full: ## the slow parts of the suites: 20,000 simulator seeds, long fuzzing, many crashes; hours
	@.ci/need
	@.ci/suites --full

suite: ## one suite: make suite NAME=kcheck
	@.ci/suites $(NAME)

vm: ## the kernel module in a virtual machine, all tests in full (vm/README.md)
	@.ci/need
	vm/run_vm_tests.sh --with-block-device --size=10GB

kcheck: ## compile core/ as the kernel will, measure its stack frames, look for recursion and panics
	.ci/kcheck
	.ci/kcheck --canary

bench: ## measure and write the table in README.md (root; takes a while)
	bench/run

fmt: ## format the sources
	cargo fmt --all

clippy: ## lints, as errors
	cargo clippy -q --workspace --all-targets -- -D warnings

doc: ## build the documentation, warnings as errors
	RUSTDOCFLAGS=-Dwarnings cargo doc -q --workspace --no-deps

prefix ?= /usr/local
install: build ## programs, man pages and completions to $(prefix), the mount helper to /sbin
	install -D -t $(DESTDIR)$(prefix)/bin target/release/vexfs
	install -d $(DESTDIR)$(prefix)/sbin
	ln -sf ../bin/vexfs $(DESTDIR)$(prefix)/sbin/mkfs.vexfs
	ln -sf ../bin/vexfs $(DESTDIR)$(prefix)/sbin/fsck.vexfs
	install -D -T target/release/mount-fuse-vexfs $(DESTDIR)/sbin/mount.fuse.vexfs
	target/release/vexfs man target/man
	install -D -m 644 -t $(DESTDIR)$(prefix)/share/man/man1 target/man/*.1
	install -D -m 644 -t $(DESTDIR)$(prefix)/share/man/man8 target/man/*.8
	target/release/vexfs completions bash | install -D -m 644 /dev/stdin $(DESTDIR)$(prefix)/share/bash-completion/completions/vexfs

clean: ## what was built
	cargo clean
