// SPDX-License-Identifier: GPL-2.0-only
//! `make IMAGE MIB`: makes a volume in an image file, the shortest use of the library.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [image, mib] = &args[..] else { return Err("usage: make IMAGE MIB".into()) };
    let device = vexfs_embedded::FileDevice::create(image, mib.parse::<u64>()? << 20)?;
    vexfs_embedded::make(&device, &vexfs_embedded::MakeOptions::default())?;
    Ok(())
}
