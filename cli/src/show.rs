// SPDX-License-Identifier: GPL-2.0-only
//! How results look: JSON lines, names that are not UTF-8, times, progress bars.

use crate::fail::{Done, Failure};
use base64::Engine;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use serde_json::{Map, Value};
use std::io::{IsTerminal, Write};

/// Writes a line to the standard output. Whoever reads it may have had enough; that is no error.
pub fn line(text: impl std::fmt::Display) -> Done {
    bytes(format!("{text}\n").as_bytes())
}

/// Writes bytes to the standard output.
pub fn bytes(b: &[u8]) -> Done {
    match std::io::stdout().lock().write_all(b) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(e) => Err(Failure::io("standard output", &e)),
    }
}

/// Puts a name into an object: as `key`, and as base64 in `key_bytes` where it is not UTF-8.
pub fn put_name(object: &mut Map<String, Value>, key: &str, name: &[u8]) {
    object.insert(key.to_string(), Value::from(String::from_utf8_lossy(name)));
    if std::str::from_utf8(name).is_err() {
        let text = base64::engine::general_purpose::STANDARD.encode(name);
        object.insert(format!("{key}_bytes"), Value::from(text));
    }
}

/// A name for people: control characters and what is not UTF-8 are escaped, so that a name cannot
/// drive the terminal.
pub fn name(b: &[u8]) -> String {
    let mut out = String::new();
    for part in b.utf8_chunks() {
        for c in part.valid().chars() {
            if c.is_control() {
                out.extend(c.escape_default());
            } else {
                out.push(c);
            }
        }
        for byte in part.invalid() {
            out.push_str(&format!("\\x{byte:02x}"));
        }
    }
    out
}

/// Seconds since 1970 as local time, to the second.
pub fn time(sec: i64) -> String {
    // SAFETY: an all-zero tm is a valid value for localtime_r to overwrite.
    let mut tm: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are valid for the call.
    if unsafe { libc::localtime_r(&sec, &mut tm) }.is_null() {
        return format!("@{sec}");
    }
    format!(
        "{:04}-{:02}-{:02} {:02}:{:02}:{:02}",
        i64::from(tm.tm_year) + 1900,
        tm.tm_mon + 1,
        tm.tm_mday,
        tm.tm_hour,
        tm.tm_min,
        tm.tm_sec
    )
}

/// A number of bytes with a unit.
pub fn size(n: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut i = 0;
    while i + 1 < units.len() && n >> (10 * (i + 1)) > 0 {
        i += 1;
    }
    if i == 0 {
        return format!("{n} B");
    }
    format!("{:.1} {}", n as f64 / (1u64 << (10 * i)) as f64, units[i])
}

/// A whole number with its digits in groups of three.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i) % 3 == 0 {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// A number of things: `1 vector`, `2,000 vectors`.
pub fn counted(n: u64, what: &str) -> String {
    format!("{} {what}{}", count(n), if n == 1 { "" } else { "s" })
}

/// A progress bar for `total` bytes; only on a terminal.
pub fn progress_bytes(total: u64, what: &str) -> ProgressBar {
    let bar = progress(total, what);
    let template = "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}";
    if let (false, Ok(style)) = (bar.is_hidden(), ProgressStyle::with_template(template)) {
        bar.set_style(style);
    }
    bar
}

/// A progress bar for `total` steps of long work; only on a terminal.
pub fn progress(total: u64, what: &str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(10));
    if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {human_pos}/{human_len} {rate} {eta}") {
        bar.set_style(style.with_key("rate", |s: &ProgressState, w: &mut dyn std::fmt::Write| {
            let _ = write!(w, "{}/s", count(s.per_sec() as u64));
        }));
    }
    bar.set_message(what.to_string());
    bar
}

/// A sign of life for long work of unknown length; only on a terminal.
pub fn working(what: &str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10));
    if let Ok(style) = ProgressStyle::with_template("{msg} {spinner} {elapsed}") {
        bar.set_style(style);
    }
    bar.set_message(what.to_string());
    bar.enable_steady_tick(std::time::Duration::from_millis(100));
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert_eq!(name(b"a b"), "a b");
        assert_eq!(name(b"\x1b[2J"), "\\u{1b}[2J");
        assert_eq!(name("gr\u{fc}n".as_bytes()), "grün");
        assert_eq!(name(b"x\xffy"), "x\\xffy");
        let mut o = Map::new();
        put_name(&mut o, "path", b"x\xff");
        assert_eq!(Value::from(o).to_string(), r#"{"path":"x�","path_bytes":"eP8="}"#);
        let mut o = Map::new();
        put_name(&mut o, "path", b"x");
        assert_eq!(Value::from(o).to_string(), r#"{"path":"x"}"#);
    }

    #[test]
    fn numbers() {
        assert_eq!(size(512), "512 B");
        assert_eq!(size(16 << 20), "16.0 MiB");
        assert_eq!(size(u64::MAX), "16384.0 PiB");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(count(12), "12");
        assert_eq!((counted(1, "vector"), counted(1000, "vector")), ("1 vector".into(), "1,000 vectors".into()));
    }
}
