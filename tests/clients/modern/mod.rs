//! Clients and registries in the versions of today, which `make clients` builds.
//!
//! `programs.txt` lists them, and `build.sh` puts them into a cache. No other target runs these tests, because building
//! takes long and needs Go. As in the other tests of clients, nothing leaves the machine.

mod buildkit;
mod containerd;
mod cosign;
mod crane;
mod distribution;
mod docker;
mod helm;
mod oras;
mod podman;
mod programs;
mod regctl;
mod scene;
mod skopeo;
mod tool;
