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
    let file = a.dir.join("mount.fuse.vexfs.8");
    std::fs::write(&file, MOUNT_PAGE).map_err(|e| Failure::io(file.display(), &e))?;
    // There are no pages about `help`.
    let mut vexfs = Vexfs::command().disable_help_subcommand(true);
    for name in vexfs.get_subcommands().map(|c| c.get_name().to_string()).collect::<Vec<_>>() {
        vexfs = vexfs.mut_subcommand(name, |c| c.disable_help_subcommand(true));
    }
    vexfs.build();
    pages_below(&a.dir, &vexfs, "vexfs")
}

/// The page of the mount helper, which reads its arguments itself.
const MOUNT_PAGE: &str = r#".ie \n(.g .ds Aq \(aq
.el .ds Aq '
.TH mount.fuse.vexfs 8 "" "" "VexFS"
.SH NAME
mount.fuse.vexfs \- mount a VexFS volume through FUSE
.SH SYNOPSIS
\fBmount \-t fuse.vexfs\fR [\fB\-o\fR \fIOPTIONS\fR] \fISOURCE\fR \fIDIR\fR
.br
\fBmount.fuse.vexfs\fR \fISOURCE\fR \fIDIR\fR [\fB\-o\fR \fIOPTIONS\fR] [\fB\-\-foreground\fR]
.SH DESCRIPTION
Mounts the volume in the image file or block device \fISOURCE\fR on the directory \fIDIR\fR. \fBmount\fR(8) runs this
program, also for lines of \fBfstab\fR(5) whose type is fuse.vexfs; people type \fBvexfs mount\fR.
.SH OPTIONS
.TP
\fBro\fR, \fBrw\fR
without or with changes
.TP
\fBallow_other\fR
other users than the one that mounts may use it
.TP
\fBdev\fR, \fBnodev\fR, \fBsuid\fR, \fBnosuid\fR, \fBexec\fR, \fBnoexec\fR, \fBsync\fR, \fBasync\fR
as in \fBmount\fR(8)
.TP
\fBnoatime\fR, \fBrelatime\fR, \fBstrictatime\fR
when reading renews the access time
.TP
\fBfsname=\fR\fINAME\fR
name in the table of mounts
.TP
\fBthreads=\fR\fIN\fR
threads that read requests, 1 to 256 (16)
.TP
\fBcache=\fR\fISIZE\fR
bytes, or with k, m or g, for the caches of tree nodes and vectors (a quarter of the memory); the kernel module takes the same
.TP
\fBcache_mb=\fR\fIN\fR, \fBlog_mb=\fR\fIN\fR
the same in MiB, and MiB of log before a checkpoint (64)
.SH EXIT STATUS
0 mounted; 1 wrong usage; 32 the mount failed.
.SH SEE ALSO
\fBvexfs\fR(1), \fBmkfs.vexfs\fR(8), \fBfsck.vexfs\fR(8), \fBmount\fR(8)
"#;

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
    // What stands behind the options: exit codes everywhere but in one page.
    let text = String::from_utf8_lossy(&out);
    let heading = if text.contains(".SH EXTRA\nExit codes") { ".SH \"EXIT STATUS\"" } else { ".SH NOTES" };
    let out = text.replace(".SH EXTRA", heading);
    std::fs::write(&file, out).map_err(|e| Failure::io(file.display(), &e))
}
