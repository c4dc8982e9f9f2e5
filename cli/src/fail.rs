// SPDX-License-Identifier: GPL-2.0-only
//! How the programs fail: one line on stderr that names the cause and the fix, and an exit code.

use std::fmt;
use std::process::ExitCode;

/// Exit codes of `vexfs` (mkfs.vexfs uses the same, fsck.vexfs those of fsck(8)).
pub mod code {
    /// Something went wrong that has no code of its own.
    pub const FAILED: u8 = 1;
    /// The command line or an input file is wrong. Nothing was changed, but for what the message says was done before.
    pub const USAGE: u8 = 2;
    /// What was named does not exist.
    pub const NOT_FOUND: u8 = 3;
    /// What was to be made exists already.
    pub const EXISTS: u8 = 4;
    /// Permission denied, or the volume is read-only.
    pub const DENIED: u8 = 5;
    /// No space, memory or quota left.
    pub const FULL: u8 = 6;
    /// The device failed or its data is damaged.
    pub const DAMAGED: u8 = 7;
    /// In use by somebody else.
    pub const BUSY: u8 = 8;

    /// The codes, for `--help`.
    pub const HELP: &str = "\
Exit codes: 0 done; 1 failed; 2 wrong usage or input; 3 not found; 4 exists already;
5 permission denied or read-only; 6 no space or memory; 7 input/output error or damaged data; 8 in use.";

    /// The code for a Linux error number.
    pub fn from_errno(errno: i32) -> u8 {
        match errno {
            libc::ENOENT | libc::ENODATA | libc::ENOTDIR | libc::ESTALE => NOT_FOUND,
            libc::EEXIST | libc::ENOTEMPTY => EXISTS,
            libc::EPERM | libc::EACCES | libc::EROFS => DENIED,
            libc::ENOSPC | libc::ENOMEM | libc::EDQUOT => FULL,
            libc::EIO => DAMAGED,
            libc::EBUSY | libc::EWOULDBLOCK | libc::ETXTBSY => BUSY,
            libc::EINVAL | libc::ERANGE | libc::E2BIG | libc::ENAMETOOLONG | libc::EISDIR => USAGE,
            _ => FAILED,
        }
    }
}

/// Why a command did not succeed.
#[derive(Debug)]
pub struct Failure {
    /// Exit code.
    pub code: u8,
    /// One line for people; further lines only show a place in the input.
    pub text: String,
}

/// Result of a command.
pub type Done<T = ()> = Result<T, Failure>;

impl Failure {
    /// A failure with a code.
    pub fn new(code: u8, text: impl Into<String>) -> Failure {
        Failure { code, text: text.into() }
    }

    /// A failure of an I/O call on `what`.
    pub fn io(what: impl fmt::Display, e: &std::io::Error) -> Failure {
        let code = match e.raw_os_error() {
            Some(n) => code::from_errno(n),
            None => match e.kind() {
                std::io::ErrorKind::UnexpectedEof | std::io::ErrorKind::InvalidData => code::USAGE,
                _ => code::FAILED,
            },
        };
        let text = e.to_string();
        let text = text.split(" (os error").next().unwrap_or(&text);
        Failure::new(code, format!("{what}: {text}"))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Says what is wrong with the command line in one line; gives `code`. Help and version are no mistakes.
pub fn usage(program: &str, e: &clap::Error, code: u8) -> ExitCode {
    use clap::error::ErrorKind as K;
    if matches!(e.kind(), K::DisplayHelp | K::DisplayVersion | K::DisplayHelpOnMissingArgumentOrSubcommand) {
        let _ = e.print();
        return ExitCode::from(if e.use_stderr() { code } else { 0 });
    }
    eprintln!("{program}: {}; see {program} --help", usage_text(&e.to_string()));
    ExitCode::from(code)
}

/// Of what clap says: the mistake, and what it may have been meant to be.
fn usage_text(text: &str) -> String {
    let line = |part: &str| part.lines().map(str::trim).collect::<Vec<_>>().join(" ");
    let mut parts = text.split("\n\n");
    let mistake = line(parts.next().unwrap_or(text));
    let mistake = mistake.strip_prefix("error: ").unwrap_or(&mistake).to_string();
    match parts.map(line).find(|p| p.starts_with("tip: ") && p.contains("similar")) {
        Some(tip) => format!("{mistake} ({})", tip.trim_start_matches("tip: ")),
        None => mistake,
    }
}

/// Returns with a [`Failure`]: `fail!(code::USAGE, "text {}", x)`.
#[macro_export]
macro_rules! fail {
    ($code:expr, $($arg:tt)*) => {
        return Err($crate::fail::Failure::new($code, format!($($arg)*)))
    };
}
