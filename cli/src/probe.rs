// SPDX-License-Identifier: GPL-2.0-only
//! What is on a device before mkfs.vexfs overwrites it: filesystems, partition tables, containers, by their magic numbers.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::Path;
use vexfs_core::format::{BLOCK, SUPER_MAGIC, SUPER_SLOTS};
use vexfs_embedded::Device;

/// Magic numbers that stand alone: offset, bytes, name.
const MAGICS: &[(u64, &[u8], &str)] = &[
    (0, b"XFSB", "an XFS filesystem"),
    (0x10040, b"_BHRfS_M", "a btrfs filesystem"),
    (0x1018, &[0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca], "a bcachefs filesystem"),
    (0x1018, &[0xc6, 0x85, 0x73, 0xf6, 0x66, 0xce, 0x90, 0xa9], "a bcache or bcachefs device"),
    (0x400, &[0x10, 0x20, 0xf5, 0xf2], "an F2FS filesystem"),
    (0x400, &[0xe2, 0xe1, 0xf5, 0xe0], "an EROFS filesystem"),
    (0x8000, b"JFS1", "a JFS filesystem"),
    (0x10034, b"ReIsEr", "a ReiserFS filesystem"),
    (0x406, &[0x34, 0x34], "a NILFS2 filesystem"),
    (3, b"EXFAT   ", "an exFAT filesystem"),
    (3, b"NTFS    ", "an NTFS filesystem"),
    (0x52, b"FAT32   ", "a FAT filesystem"),
    (0x36, b"FAT1", "a FAT filesystem"),
    (0x36, b"FAT  ", "a FAT filesystem"),
    (0x8001, b"CD001", "an ISO 9660 filesystem"),
    (0x8001, b"BEA01", "a UDF filesystem"),
    (0, b"hsqs", "a squashfs filesystem"),
    (0, b"LUKS\xba\xbe", "a LUKS container"),
    (0x4000, b"SKUL\xba\xbe", "a LUKS container"),
    (0, b"LABELONE", "an LVM physical volume"),
    (0x200, b"LABELONE", "an LVM physical volume"),
    (0x400, b"LABELONE", "an LVM physical volume"),
    (0x600, b"LABELONE", "an LVM physical volume"),
    (0x1000, &[0xfc, 0x4e, 0x2b, 0xa9], "a member of a RAID (md)"),
    (0, &[0xfc, 0x4e, 0x2b, 0xa9], "a member of a RAID (md)"),
    (0x20000, &[0x0c, 0xb1, 0xba, 0x00], "a ZFS pool member"),
    (0xff6, b"SWAPSPACE2", "swap space"),
    (0xff6, b"SWAP-SPACE", "swap space"),
    (0xff6, b"S1SUSPEND", "a suspended system"),
    (0xfff6, b"SWAPSPACE2", "swap space"),
    (0x200, b"EFI PART", "a GPT partition table"),
    (0x1000, b"EFI PART", "a GPT partition table"),
    (0, b"QFI\xfb", "a QEMU image"),
];

/// Bytes from the start that are looked at.
const HEAD: usize = 0x21000;

/// What is on the device, as far as it is known; `None` if nothing is recognised.
pub fn contents(device: &dyn Device) -> std::io::Result<Option<String>> {
    let len = device.len();
    let mut head = vec![0; HEAD.min(usize::try_from(len).unwrap_or(HEAD))];
    device.read_at(0, &mut head)?;
    let at = |offset: u64, n: usize| head.get(offset as usize..offset as usize + n);

    for pair in SUPER_SLOTS.iter().flatten() {
        let mut block = vec![0; BLOCK];
        let offset = pair * BLOCK as u64;
        if offset + BLOCK as u64 <= len {
            device.read_at(offset, &mut block)?;
            if block[8..16] == SUPER_MAGIC.to_le_bytes() {
                return Ok(Some("a VexFS filesystem".to_string()));
            }
        }
    }
    // ext: what makes it ext3 or ext4 are feature bits.
    if at(0x438, 2) == Some(&[0x53, 0xef]) {
        let word = |o: u64| at(o, 4).map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        let kind = match (word(0x460) & 0x2c0 != 0, word(0x45c) & 4 != 0) {
            (true, _) => "ext4",
            (_, true) => "ext3",
            _ => "ext2",
        };
        return Ok(Some(format!("an {kind} filesystem")));
    }
    if let Some((.., name)) = MAGICS.iter().find(|(o, magic, _)| at(*o, magic.len()) == Some(magic)) {
        return Ok(Some((*name).to_string()));
    }
    // RAID superblocks of versions 0.90 and 1.0 are near the end.
    for back in [(len & !0xffff).checked_sub(0x10000), (len & !0xfff).checked_sub(0x2000)].into_iter().flatten() {
        let mut magic = [0; 4];
        if back + 4 <= len {
            device.read_at(back, &mut magic)?;
            if magic == [0xfc, 0x4e, 0x2b, 0xa9] {
                return Ok(Some("a member of a RAID (md)".to_string()));
            }
        }
    }
    // A DOS partition table; a boot sector alone has no entries.
    if at(510, 2) == Some(&[0x55, 0xaa]) {
        let used = (0..4).any(|i| at(446 + 16 * i + 4, 1).is_some_and(|t| t[0] != 0));
        return Ok(Some(if used { "a DOS partition table" } else { "a boot sector" }.to_string()));
    }
    Ok(None)
}

/// Bytes that [`has_data`] reads at most.
const LOOK_MAX: u64 = 1 << 30;

/// Whether the file holds anything but holes and zeros. What is behind a gibibyte of stored zeros is not looked at.
pub fn has_data(path: &Path) -> std::io::Result<bool> {
    let file = File::open(path)?;
    let len = file.metadata()?.len();
    let mut buf = vec![0; 1 << 20];
    let (mut at, mut read) = (0, 0);
    while at < len && read < LOOK_MAX {
        // SAFETY: no memory is involved.
        let data = unsafe { libc::lseek(file.as_raw_fd(), at as libc::off_t, libc::SEEK_DATA) };
        match u64::try_from(data) {
            Ok(data) => at = data,
            Err(_) if std::io::Error::last_os_error().raw_os_error() == Some(libc::ENXIO) => break, // only a hole is left
            Err(_) => {} // a filesystem that does not tell holes
        }
        let n = (len - at).min(buf.len() as u64) as usize;
        file.read_exact_at(&mut buf[..n], at)?;
        if buf[..n].iter().any(|b| *b != 0) {
            return Ok(true);
        }
        at += n as u64;
        read += n as u64;
    }
    Ok(false)
}

/// How many partitions the kernel knows on a block device.
pub fn partitions(path: &Path) -> usize {
    let Ok(meta) = std::fs::metadata(path) else { return 0 };
    if !meta.file_type().is_block_device() {
        return 0;
    }
    let sys = format!("/sys/dev/block/{}:{}", libc::major(meta.rdev()), libc::minor(meta.rdev()));
    let Ok(entries) = std::fs::read_dir(sys) else { return 0 };
    entries.flatten().filter(|e| e.path().join("partition").exists()).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use vexfs_embedded::MemDevice;

    fn with(parts: &[(usize, &[u8])]) -> Option<String> {
        let mut b = vec![0; 16 << 20];
        for (o, bytes) in parts {
            b[*o..o + bytes.len()].copy_from_slice(bytes);
        }
        contents(&MemDevice::new(b)).unwrap()
    }

    #[test]
    fn kinds() {
        assert_eq!(with(&[]), None);
        assert_eq!(with(&[(0x438, b"\x53\xef")]).unwrap(), "an ext2 filesystem");
        assert_eq!(with(&[(0x438, b"\x53\xef"), (0x45c, b"\x04")]).unwrap(), "an ext3 filesystem");
        assert_eq!(with(&[(0x438, b"\x53\xef"), (0x460, b"\x40")]).unwrap(), "an ext4 filesystem");
        assert_eq!(with(&[(0, b"XFSB")]).unwrap(), "an XFS filesystem");
        assert_eq!(with(&[(510, b"\x55\xaa"), (450, b"\x83")]).unwrap(), "a DOS partition table");
        assert_eq!(with(&[(510, b"\x55\xaa"), (512, b"EFI PART")]).unwrap(), "a GPT partition table");
        assert_eq!(with(&[((16 << 20) - 0x2000, b"\xfc\x4e\x2b\xa9")]).unwrap(), "a member of a RAID (md)");
        assert_eq!(with(&[(17 * 4096 + 8, &SUPER_MAGIC.to_le_bytes())]).unwrap(), "a VexFS filesystem");
    }

    #[test]
    fn small_devices() {
        for len in [0usize, 1, 511, 4096, 70_000] {
            assert_eq!(contents(&MemDevice::new(vec![0; len])).unwrap(), None, "{len}");
        }
    }
}
