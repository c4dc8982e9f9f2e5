// SPDX-License-Identifier: GPL-2.0-only
//! What a measurement ran on, and through which driver.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use vexfs_cli::place::Place;

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// Value of a field of /proc/cpuinfo.
fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|l| l.split_once(':').filter(|(k, _)| k.trim() == name)).map(|(_, v)| v.trim())
}

/// What the hypervisor calls itself, if there is one.
fn hypervisor() -> String {
    #[cfg(target_arch = "x86_64")]
    {
        // SAFETY: every x86-64 processor has cpuid; a leaf that does not exist gives other numbers, not a fault.
        // (Safe to call in newer Rust.)
        #[allow(unused_unsafe)]
        let r = unsafe { std::arch::x86_64::__cpuid(0x4000_0000) };
        let bytes: Vec<u8> = [r.ebx, r.ecx, r.edx].iter().flat_map(|x| x.to_le_bytes()).collect();
        String::from_utf8_lossy(&bytes).trim_end_matches('\0').to_string()
    }
    #[cfg(not(target_arch = "x86_64"))]
    String::new()
}

/// Bare metal, KVM, emulated VM, user-mode Linux, or a virtual machine of another kind.
pub fn kind() -> String {
    kind_of(
        &read("/proc/cpuinfo"),
        &(read("/sys/class/dmi/id/sys_vendor") + &read("/sys/class/dmi/id/product_name")),
        &hypervisor(),
    )
}

fn kind_of(info: &str, dmi: &str, hypervisor: &str) -> String {
    let model = field(info, "model name").unwrap_or("");
    if info.contains("User Mode Linux") || field(info, "vendor_id") == Some("User Mode Linux") {
        return "user-mode Linux".into();
    }
    if model.contains("QEMU") || model.contains("TCG") {
        return "emulated VM".into();
    }
    let flags = field(info, "flags").or(field(info, "Features")).unwrap_or("");
    if !flags.split(' ').any(|f| f == "hypervisor") {
        return "bare metal".into();
    }
    if hypervisor.starts_with("TCG") {
        return "emulated VM".into();
    }
    if hypervisor.starts_with("KVM") || dmi.contains("KVM") || dmi.contains("QEMU") {
        return "KVM".into();
    }
    let vendor = dmi.trim().replace('\n', " ");
    if vendor.is_empty() {
        "virtual machine".into()
    } else {
        format!("virtual machine ({vendor})")
    }
}

/// Name of the processor and how many there are.
pub fn cpu() -> String {
    let info = read("/proc/cpuinfo");
    let name = field(&info, "model name").unwrap_or("unknown processor").to_string();
    let n = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{n} × {name}")
}

/// The commit of the sources in the current directory, if git knows it.
pub fn commit() -> String {
    let run = |args: &[&str]| std::process::Command::new("git").args(args).output().ok().filter(|o| o.status.success());
    let Some(out) = run(&["rev-parse", "--short=12", "HEAD"]) else { return "unknown".into() };
    let dirty = run(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|o| !o.stdout.is_empty());
    String::from_utf8_lossy(&out.stdout).trim().to_string() + if dirty { " with changes" } else { "" }
}

/// Label of the driver through which `place` is reached.
pub fn driver(place: &Place) -> String {
    match place {
        Place::Inside { .. } => "VexFS-ANNS-EMBEDDED".into(),
        Place::Mounted(path) => match filesystem(path, &read("/proc/self/mounts")).as_str() {
            "fuse.vexfs" => "VexFS-ANNS-FUSE".into(),
            "vexfs" => "VexFS-ANNS-KERNEL".into(),
            other => other.into(),
        },
    }
}

/// Type of the filesystem that `path`, or the nearest directory above it that exists, is on.
fn filesystem(path: &Path, mounts: &str) -> String {
    let real = path.ancestors().find_map(|p| p.canonicalize().ok()).unwrap_or_else(|| "/".into());
    let mut best = (0, "unknown");
    for line in mounts.lines() {
        let mut words = line.split(' ').skip(1);
        let (Some(at), Some(kind)) = (words.next(), words.next()) else { continue };
        // Later mounts hide earlier ones of the same place.
        if real.starts_with(std::ffi::OsStr::from_bytes(&unescape(at))) && at.len() >= best.0 {
            best = (at.len(), kind);
        }
    }
    best.1.to_string()
}

/// Octal escapes of /proc/mounts.
fn unescape(s: &str) -> Vec<u8> {
    let b = s.as_bytes();
    let mut out = Vec::new();
    let mut i = 0;
    while i < b.len() {
        let code = (b[i] == b'\\').then(|| s.get(i + 1..i + 4).and_then(|o| u8::from_str_radix(o, 8).ok())).flatten();
        out.push(code.unwrap_or(b[i]));
        i += if code.is_some() { 4 } else { 1 };
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines() {
        let cpu = |model: &str, flags: &str| format!("vendor_id\t: X\nmodel name\t: {model}\nflags\t\t: fpu {flags}\n");
        assert_eq!(kind_of(&cpu("Xeon", "sse"), "", ""), "bare metal");
        assert_eq!(kind_of(&cpu("Xeon", "hypervisor"), "QEMU\nStandard PC", ""), "KVM");
        assert_eq!(kind_of(&cpu("Xeon", "hypervisor"), "", "KVMKVMKVM"), "KVM");
        assert_eq!(kind_of(&cpu("Xeon", "hypervisor"), "QEMU", "TCGTCGTCGTCG"), "emulated VM");
        assert_eq!(kind_of(&cpu("QEMU TCG CPU version 2.5+", "hypervisor"), "QEMU", ""), "emulated VM");
        assert_eq!(kind_of(&cpu("Xeon", "hypervisor"), "Xen\nHVM\n", "XenVMMXenVMM"), "virtual machine (Xen HVM)");
        assert_eq!(kind_of("vendor_id : User Mode Linux\n", "", ""), "user-mode Linux");
    }

    #[test]
    fn filesystems() {
        let mounts =
            "/dev/a / ext4 rw 0 0\nproc /proc proc rw 0 0\nv /tmp fuse.vexfs rw 0 0\nx /with\\040space xfs rw 0 0\n";
        assert_eq!(filesystem(Path::new("/tmp/does/not/exist"), mounts), "fuse.vexfs");
        assert_eq!(filesystem(Path::new("/usr"), mounts), "ext4");
        assert_eq!(filesystem(Path::new("/proc/self"), mounts), "proc");
        assert_eq!(unescape("/with\\040space"), b"/with space");
        let place = Place::Inside { target: "x".into(), path: vec![] };
        assert_eq!(driver(&place), "VexFS-ANNS-EMBEDDED");
    }
}
