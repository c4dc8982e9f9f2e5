// SPDX-License-Identifier: GPL-2.0-only
//! Mount options, as they stand behind `-o` and in fstab.

use std::fmt;

/// When reading a file renews its access time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Atime {
    /// Never.
    Never,
    /// If it is not later than the last change, or a day old.
    #[default]
    Relative,
    /// Always.
    Always,
}

/// Losing power, for tests (see `vexfs_embedded::testing`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PowerCutOptions {
    /// What an unsettled journal of an earlier run is settled with before mounting.
    pub seed: u64,
    /// Flushes do nothing: data must get lost.
    pub without_flushes: bool,
}

/// Options of a mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountOptions {
    /// No changes.
    pub read_only: bool,
    /// Other users than the one that mounts may use it.
    pub allow_other: bool,
    /// Device files work.
    pub dev: bool,
    /// Set-user-id programs work.
    pub suid: bool,
    /// Programs can be started.
    pub exec: bool,
    /// Every change is durable when it returns.
    pub sync: bool,
    /// Access times.
    pub atime: Atime,
    /// Name in the table of mounts; else the path of the image or device.
    pub fsname: Option<String>,
    /// Threads that read requests from the kernel.
    pub threads: usize,
    /// Bytes that the caches of tree nodes and vectors may take: by default a quarter of the memory.
    pub cache_bytes: usize,
    /// Bytes of log after which a checkpoint is started.
    pub log_bytes: u64,
    /// Change the flags of a mount that exists.
    pub remount: bool,
    /// For tests: the image loses what was not flushed.
    pub power_cut: Option<PowerCutOptions>,
}

impl Default for MountOptions {
    fn default() -> MountOptions {
        let host = vexfs_embedded::HostOptions::default();
        MountOptions {
            read_only: false,
            allow_other: false,
            dev: false,
            suid: false,
            exec: true,
            sync: false,
            atime: Atime::Relative,
            fsname: None,
            threads: 16,
            cache_bytes: host.cache_bytes,
            log_bytes: host.log_bytes,
            remount: false,
            power_cut: None,
        }
    }
}

/// An option that is not known or has a wrong value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OptionError(pub(crate) String);

impl fmt::Display for OptionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for OptionError {}

impl MountOptions {
    /// Reads further options, separated by commas; later ones win.
    pub fn parse(&mut self, text: &str) -> Result<(), OptionError> {
        if text.split(',').any(|o| o.trim() == "remount") && !self.remount {
            // What the mount has is listed then, and what is not listed it does not have.
            *self = MountOptions { remount: true, dev: true, suid: true, ..self.clone() };
        }
        for option in text.split(',').map(str::trim).filter(|o| !o.is_empty()) {
            self.parse_one(option)?;
        }
        Ok(())
    }

    fn parse_one(&mut self, option: &str) -> Result<(), OptionError> {
        let (name, value) = match option.split_once('=') {
            Some((n, v)) => (n, Some(v)),
            None => (option, None),
        };
        let number = |unit: u64| {
            value
                .and_then(|v| v.parse::<u64>().ok())
                .and_then(|n| n.checked_mul(unit))
                .ok_or_else(|| OptionError(format!("mount option {name}: give a number, as in {name}=64")))
        };
        let no_size =
            || OptionError("mount option cache: give a size in bytes, or with k, m or g, as in cache=64m".into());
        match name {
            "ro" => self.read_only = true,
            "rw" => self.read_only = false,
            "allow_other" => self.allow_other = true,
            "dev" => self.dev = true,
            "nodev" => self.dev = false,
            "suid" => self.suid = true,
            "nosuid" => self.suid = false,
            "exec" => self.exec = true,
            "noexec" => self.exec = false,
            "sync" => self.sync = true,
            "async" => self.sync = false,
            "noatime" => self.atime = Atime::Never,
            "relatime" | "atime" => self.atime = Atime::Relative,
            "strictatime" => self.atime = Atime::Always,
            "fsname" => self.fsname = value.map(str::to_string),
            "threads" => match number(1)? {
                0 => return Err(OptionError("mount option threads: at least 1 is needed".to_string())),
                n => self.threads = n.min(256) as usize,
            },
            "cache" => self.cache_bytes = value.and_then(size).ok_or_else(no_size)?.clamp(1 << 20, 1 << 40) as usize,
            "cache_mb" => self.cache_bytes = number(1 << 20)?.clamp(1 << 20, 1 << 40) as usize,
            "log_mb" => self.log_bytes = number(1 << 20)?.clamp(1 << 20, 1 << 40),
            "powercut" => {
                let without_flushes = self.power_cut.is_some_and(|p| p.without_flushes);
                self.power_cut = Some(PowerCutOptions { seed: number(1)?, without_flushes });
            }
            "noflush" => {
                let seed = self.power_cut.map_or(0, |p| p.seed);
                self.power_cut = Some(PowerCutOptions { seed, without_flushes: true });
            }
            // The kernel always checks permissions; the type is always vexfs.
            "default_permissions" | "subtype" | "remount" => {}
            // What the kernel lists of a FUSE mount, and mount(8) gives back with a remount.
            "user_id" | "group_id" | "rootmode" | "fd" | "max_read" | "blksize" => {}
            // For mount(8), fstab(5) and the boot, not for us.
            "defaults" | "auto" | "noauto" | "user" | "nouser" | "users" | "group" | "owner" | "nofail" | "_netdev"
            | "diratime" | "nodiratime" | "lazytime" | "nolazytime" | "loud" | "silent" => {}
            _ if name.starts_with("x-") || name.starts_with("comment") => {}
            _ => {
                return Err(OptionError(format!(
                    "mount option {option}: not known; known are ro, rw, allow_other, default_permissions, dev, suid, \
                     exec, sync, noatime, relatime, strictatime, fsname=NAME, threads=N, cache=SIZE, \
                     cache_mb=N, log_mb=N"
                )))
            }
        }
        Ok(())
    }
}

/// A number of bytes, or with k, m or g of KiB, MiB or GiB, as the kernel module reads it.
fn size(text: &str) -> Option<u64> {
    let (digits, unit) = match text.char_indices().last()? {
        (at, 'k' | 'K') => (&text[..at], 1 << 10),
        (at, 'm' | 'M') => (&text[..at], 1 << 20),
        (at, 'g' | 'G') => (&text[..at], 1 << 30),
        _ => (text, 1),
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_as_in_fstab() {
        let mut o = MountOptions::default();
        o.parse("rw,noauto,x-systemd.automount,allow_other,default_permissions,dev,suid,noatime").unwrap();
        assert!(o.allow_other && o.dev && o.suid && !o.read_only && o.atime == Atime::Never);
        o.parse("ro,nodev,,fsname=a=b,strictatime,cache_mb=2,powercut=9,noflush").unwrap();
        assert!(o.read_only && !o.dev && o.atime == Atime::Always);
        assert_eq!(o.fsname.as_deref(), Some("a=b"));
        assert_eq!(o.cache_bytes, 2 << 20);
        assert_eq!(o.power_cut, Some(PowerCutOptions { seed: 9, without_flushes: true }));
        let mut o = MountOptions::default();
        o.parse("ro,relatime,nosuid,remount,user_id=0,group_id=0,default_permissions,allow_other").unwrap();
        assert!(o.remount && o.read_only && o.dev && !o.suid);
        assert!(o.parse("nonsense").unwrap_err().to_string().contains("nonsense"));
        assert!(o.parse("threads=x").is_err());
        assert!(o.parse("cache_mb=99999999999999999999").is_err());
        for (text, bytes) in
            [("8m", 8 << 20), ("2G", 2 << 30), ("4096K", 4 << 20), ("3000000", 3_000_000), ("1", 1 << 20)]
        {
            o.parse(&format!("cache={text}")).unwrap();
            assert_eq!(o.cache_bytes, bytes, "{text}");
        }
        for text in
            ["cache", "cache=", "cache=m", "cache=-1m", "cache=8ü", "cache=99999999999999999999", "cache=20000000000g"]
        {
            assert!(o.parse(text).unwrap_err().to_string().contains("cache=64m"), "{text}");
        }
    }
}
