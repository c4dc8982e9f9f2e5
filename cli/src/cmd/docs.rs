// SPDX-License-Identifier: GPL-2.0-only
//! Shell completions and man pages, generated from the definitions of the command lines.

use crate::args::{Completions, Fsck, Man, Mkfs, Vexfs};
use crate::fail::{Done, Failure};
use crate::show;
use clap::{Command, CommandFactory};
use std::path::Path;

/// `vexfs completions`: of all three programs, in one script.
pub fn completions(a: &Completions) -> Done {
    let mut out = Vec::new();
    for mut program in [Vexfs::command(), Mkfs::command(), Fsck::command()] {
        let name = program.get_name().to_string();
        clap_complete::generate(a.shell, &mut program, name, &mut out);
    }
    show::bytes(&out)
}

/// `vexfs man`.
pub fn man(a: &Man) -> Done {
    std::fs::create_dir_all(&a.dir).map_err(|e| Failure::io(a.dir.display(), &e))?;
    for program in [Mkfs::command(), Fsck::command()] {
        page(&a.dir, program.get_name().to_string(), "8", program)?;
    }
    let mut vexfs = Vexfs::command();
    vexfs.build();
    pages_below(&a.dir, &vexfs, "vexfs")
}

/// The page of a command and those of its commands. (Two levels of commands; no recursion is needed.)
fn pages_below(dir: &Path, command: &Command, name: &str) -> Done {
    page(dir, name.to_string(), "1", command.clone())?;
    for sub in command.get_subcommands().filter(|c| c.get_name() != "help") {
        let sub_name = format!("{name}-{}", sub.get_name());
        page(dir, sub_name.clone(), "1", sub.clone())?;
        for third in sub.get_subcommands().filter(|c| c.get_name() != "help") {
            page(dir, format!("{sub_name}-{}", third.get_name()), "1", third.clone())?;
        }
    }
    Ok(())
}

fn page(dir: &Path, name: String, section: &str, command: Command) -> Done {
    let file = dir.join(format!("{name}.{section}"));
    let mut out = Vec::new();
    let page = clap_mangen::Man::new(command).title(name).section(section.to_string()).manual("VexFS");
    page.render(&mut out).map_err(|e| Failure::io(file.display(), &e))?;
    std::fs::write(&file, out).map_err(|e| Failure::io(file.display(), &e))
}
