/* SPDX-License-Identifier: GPL-2.0-only */
/* What differs between kernel versions, C side; compat.rs has the Rust side. Written for 6.12, the oldest that is supported. */
#ifndef VEXFS_COMPAT_H
#define VEXFS_COMPAT_H

#include <linux/fs.h>
#include <linux/version.h>

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 19, 0)
#define inode_state_read_once(i) READ_ONCE((i)->i_state)
#endif

#endif
