// SPDX-License-Identifier: GPL-2.0-only
//! The commands of `vexfs`, one function each. (`mkfs` and `fsck` are programs of their own.)

mod collection;
mod docs;
mod files;
mod insert;
mod mount;
mod records;
mod search;
mod transfer;
mod volume;

pub use search::put_paths;

use crate::args::Command;
use crate::fail::{Done, Failure};

/// Carries out a command.
pub fn run(command: &Command) -> Done {
    match command {
        Command::Mkfs(a) => crate::mkfs::run(a),
        Command::Fsck(_) => Err(Failure::new(8, "fsck has exit codes of its own")), // see main.rs
        Command::Mount(a) => mount::mount(a),
        Command::Umount(a) => mount::umount(a),
        Command::Collection(a) => collection::run(a),
        Command::Insert(a) => insert::insert(a),
        Command::Embed(a) => records::embed(a),
        Command::Search(a) => search::search(a),
        Command::Get(a) => records::get(a),
        Command::List(a) => records::list(a),
        Command::Update(a) => records::update(a),
        Command::Delete(a) => records::delete(a),
        Command::Export(a) => transfer::export(a),
        Command::Import(a) => transfer::import(a),
        Command::Ls(a) => files::ls(a),
        Command::Cat(a) => files::cat(a),
        Command::Put(a) => files::put(a),
        Command::Rm(a) => files::rm(a),
        Command::Mkdir(a) => files::mkdir(a),
        Command::Stat(a) => files::stat(a),
        Command::Scrub(a) => volume::scrub(a),
        Command::Info(a) => volume::info(a),
        Command::Completions(a) => docs::completions(a),
        Command::Man(a) => docs::man(a),
    }
}
