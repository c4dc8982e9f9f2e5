// SPDX-License-Identifier: GPL-2.0-only
/* Inline functions and macros of the kernel that Rust cannot call, one line each. See helpers.h. */
#include <linux/delay.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/panic.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>
#ifdef CONFIG_X86
#include <asm/cpufeature.h>
#endif
#include <asm/fpu/api.h>
#include "compat.h"
#include "helpers.h"

MODULE_ALIAS_FS("vexfs");
MODULE_VERSION("0.1.0");

/* Memory that a system call takes before it comes to the volume counts for the control group of the caller, who gets an error when
   that is at its limit, and not the out-of-memory killer. What is taken under the volume's lock (NOFS) is the cache of all. */
static gfp_t owner(void) { return current->flags & PF_MEMALLOC_NOFS ? 0 : __GFP_ACCOUNT | __GFP_RETRY_MAYFAIL; }
u64 vexfs_total_memory(void) { return (u64)totalram_pages() << PAGE_SHIFT; }
void *vexfs_alloc(size_t size, bool zero) { return kvmalloc(size, GFP_KERNEL | __GFP_NOWARN | owner() | (zero ? __GFP_ZERO : 0)); }
void vexfs_free(const void *p) { kvfree(p); }
void *vexfs_kmemdup(const void *p, size_t len) { return kmemdup(p, len, GFP_KERNEL | __GFP_NOWARN); }
void vexfs_kfree(const void *p) { kfree(p); }
unsigned int vexfs_nofs_save(void) { return memalloc_nofs_save(); }
void vexfs_nofs_restore(unsigned int flags) { memalloc_nofs_restore(flags); }
void vexfs_fpu_begin(void) { kernel_fpu_begin(); }
void vexfs_fpu_end(void) { kernel_fpu_end(); }
#if defined(CONFIG_X86) && !defined(CONFIG_UML)
bool vexfs_may_avx2(void) { return boot_cpu_has(X86_FEATURE_AVX2) && cpu_has_xfeatures(XFEATURE_MASK_SSE | XFEATURE_MASK_YMM, NULL); }
#else
bool vexfs_may_avx2(void) { return true; }
#endif
void vexfs_cond_resched(void) { cond_resched(); }
unsigned long vexfs_jiffies(void) { return jiffies; }
unsigned long vexfs_msecs(unsigned int ms) { return msecs_to_jiffies(ms); }
void vexfs_sleep_tick(void) { schedule_timeout_uninterruptible(1); }
void vexfs_short_sleep(void) { usleep_range(50, 200); }
void vexfs_rcu_barrier(void) { rcu_barrier(); }
bool vexfs_copy_from_user(void *to, const void __user *from, size_t n) { return copy_from_user(to, from, n) == 0; }
bool vexfs_copy_to_user(void __user *to, const void *from, size_t n) { return copy_to_user(to, from, n) == 0; }
void vexfs_panic(const char *dev) { panic("vexfs (%s): panic forced after an error", dev); }

u64 vexfs_memory(void) { return (u64)totalram_pages() << PAGE_SHIFT; }
bool vexfs_fatal_signal(void) { return fatal_signal_pending(current); }

int vexfs_kobject_add(struct kobject *k, const struct kobj_type *t, struct kobject *parent, const char *name) { return kobject_init_and_add(k, t, parent, "%s", name); }

void vexfs_init_rwsem(struct rw_semaphore *s) { init_rwsem(s); }
void vexfs_mutex_init(struct mutex *m) { mutex_init(m); }
/* Another class for lockdep: one that is taken while one of the first is held. */
void vexfs_mutex_init_inner(struct mutex *m) { mutex_init(m); }
void vexfs_mutex_lock(struct mutex *m) { mutex_lock(m); }
bool vexfs_mutex_lock_killable(struct mutex *m) { return mutex_lock_killable(m) == 0; }
void vexfs_mutex_unlock(struct mutex *m) { mutex_unlock(m); }
void vexfs_init_completion(struct completion *c) { init_completion(c); }
void vexfs_init_work(struct work_struct *w, work_func_t f) { INIT_WORK(w, f); }
void vexfs_init_delayed_work(struct delayed_work *w, work_func_t f) { INIT_DELAYED_WORK(w, f); }
void vexfs_queue_work(struct workqueue_struct *q, struct work_struct *w) { queue_work(q, w); }
void vexfs_mod_delayed(struct workqueue_struct *q, struct delayed_work *w, unsigned long delay) { mod_delayed_work(q, w, delay); }
struct workqueue_struct *vexfs_workqueue(const char *name, bool fast) { return alloc_workqueue(fast ? "vexfs/%s" : "vexfs-work/%s", WQ_UNBOUND | WQ_MEM_RECLAIM | (fast ? WQ_HIGHPRI : 0), 0, name); }

struct bio *vexfs_bio_alloc(struct block_device *b, unsigned short vecs, blk_opf_t opf, struct bio_set *s) { return bio_alloc_bioset(b, vecs, opf, GFP_NOIO, s); }
struct page *vexfs_page(const void *p) { return is_vmalloc_addr(p) ? vmalloc_to_page(p) : virt_to_page(p); }
u64 vexfs_bdev_bytes(struct block_device *b) { return bdev_nr_bytes(b); }
bool vexfs_bdev_discard(struct block_device *b) { return bdev_max_discard_sectors(b) != 0; }
unsigned int vexfs_bdev_logical(struct block_device *b) { return bdev_logical_block_size(b); }
void vexfs_invalidate_bdev(struct block_device *b) { sync_blockdev(b); invalidate_bdev(b); }

struct shrinker *vexfs_shrinker(const char *name) { return shrinker_alloc(0, "vexfs:%s", name); }
bool vexfs_may_fs(struct shrink_control *sc) { return (sc->gfp_mask & __GFP_FS) != 0; }
unsigned long vexfs_shrink_stop(void) { return SHRINK_STOP; }

struct kmem_cache *vexfs_inode_cache(unsigned int size, void (*ctor)(void *)) { return kmem_cache_create("vexfs_inode", size, 0, SLAB_RECLAIM_ACCOUNT | SLAB_ACCOUNT, ctor); }
void *vexfs_alloc_inode(struct super_block *sb, struct kmem_cache *c) { return alloc_inode_sb(sb, c, GFP_KERNEL); }
bool vexfs_sb_rdonly(struct super_block *sb) { return sb_rdonly(sb); }
void vexfs_sb_force_rdonly(struct super_block *sb) { sb->s_flags |= SB_RDONLY; }
void vexfs_seq_puts(struct seq_file *m, const char *s) { seq_puts(m, s); }
void vexfs_seq_number(struct seq_file *m, const char *name, u64 n) { seq_printf(m, ",%s=%llu", name, n); }
void vexfs_sync_inodes(struct super_block *sb) { down_read(&sb->s_umount); sync_inodes_sb(sb); up_read(&sb->s_umount); }
void vexfs_start_intwrite(struct super_block *sb) { sb_start_intwrite(sb); }
void vexfs_end_intwrite(struct super_block *sb) { sb_end_intwrite(sb); }
void vexfs_set_uuid(struct super_block *sb, const u8 *uuid) { super_set_uuid(sb, uuid, 16); }
struct super_block *vexfs_file_sb(struct file *f) { return file_inode(f)->i_sb; }
const char *vexfs_sb_id(struct super_block *sb) { return sb->s_id; }

bool vexfs_inode_is_new(struct inode *i) { return (inode_state_read_once(i) & I_NEW) != 0; }
void vexfs_set_ids(struct inode *i, u32 uid, u32 gid) { i_uid_write(i, uid); i_gid_write(i, gid); }
void vexfs_ids(struct inode *i, u32 *uid, u32 *gid) { *uid = i_uid_read(i); *gid = i_gid_read(i); }
u32 vexfs_vfsuid(struct inode *i, struct iattr *a) { return from_kuid(i->i_sb->s_user_ns, a->ia_uid); }
u32 vexfs_vfsgid(struct inode *i, struct iattr *a) { return from_kgid(i->i_sb->s_user_ns, a->ia_gid); }
void vexfs_times(struct inode *i, struct timespec64 *a, struct timespec64 *m, struct timespec64 *c) { *a = inode_get_atime(i); *m = inode_get_mtime(i); *c = inode_get_ctime(i); }
void vexfs_set_atime(struct inode *i, s64 s, u32 ns) { inode_set_atime(i, s, ns); }
void vexfs_set_mtime(struct inode *i, s64 s, u32 ns) { inode_set_mtime(i, s, ns); }
void vexfs_set_ctime(struct inode *i, s64 s, u32 ns) { inode_set_ctime(i, s, ns); }
s64 vexfs_i_size(struct inode *i) { return i_size_read(i); }
void vexfs_i_size_write(struct inode *i, s64 size) { i_size_write(i, size); }
void vexfs_inode_lock(struct inode *i) { inode_lock(i); }
void vexfs_inode_unlock(struct inode *i) { inode_unlock(i); }
void vexfs_inode_lock_shared(struct inode *i) { inode_lock_shared(i); }
void vexfs_inode_unlock_shared(struct inode *i) { inode_unlock_shared(i); }
void vexfs_mark_dirty_sync(struct inode *i) { mark_inode_dirty_sync(i); }
void vexfs_file_accessed(struct file *f) { file_accessed(f); }
void vexfs_init_special(struct inode *i, u32 mode, u32 dev) { init_special_inode(i, mode, new_decode_dev(dev)); }
u32 vexfs_encode_dev(dev_t d) { return new_encode_dev(d); }
bool vexfs_dir_emit(struct dir_context *c, const char *name, int len, u64 ino, unsigned int type) { return dir_emit(c, name, len, ino, type); }
bool vexfs_dir_emit_dots(struct file *f, struct dir_context *c) { return dir_emit_dots(f, c); }
bool vexfs_is_dirsync(struct inode *i) { return IS_DIRSYNC(i); }
u32 vexfs_fsuid(void) { return from_kuid(&init_user_ns, current_fsuid()); }
u32 vexfs_fsgid(void) { return from_kgid(&init_user_ns, current_fsgid()); }
void vexfs_file_ids(struct file *f, u32 *uid, u32 *gid) { *uid = from_kuid(&init_user_ns, f->f_cred->fsuid); *gid = from_kgid(&init_user_ns, f->f_cred->fsgid); }
u32 vexfs_file_groups(struct file *f, u32 *out, u32 room) { u32 n = f->f_cred->group_info->ngroups; for (u32 k = 0; k < n && k < room; k++) out[k] = from_kgid(&init_user_ns, f->f_cred->group_info->gid[k]); return n; }
void vexfs_acl_release(struct posix_acl *a) { posix_acl_release(a); }
struct dentry *vexfs_file_dentry(struct file *f) { return f->f_path.dentry; }
int vexfs_finish_open(struct file *f, int error) { return finish_open_simple(f, error); }
struct inode *vexfs_file_inode(struct file *f) { return file_inode(f); }
unsigned int vexfs_umask(void) { return current_umask(); }

void vexfs_large_folios(struct inode *i) { mapping_set_large_folios(i->i_mapping); }
size_t vexfs_folio_most(struct inode *i) { return mapping_max_folio_size(i->i_mapping); }
void vexfs_mapping_error(struct inode *i, int e) { mapping_set_error(i->i_mapping, e); }
void vexfs_invalidate_lock(struct inode *i) { filemap_invalidate_lock(i->i_mapping); }
void vexfs_invalidate_unlock(struct inode *i) { filemap_invalidate_unlock(i->i_mapping); }
s64 vexfs_folio_pos(struct folio *f) { return folio_pos(f); }
size_t vexfs_folio_size(struct folio *f) { return folio_size(f); }
void *vexfs_folio_data(struct folio *f) { return folio_address(f); }
void vexfs_folio_unlock(struct folio *f) { folio_unlock(f); }
void vexfs_folio_put(struct folio *f) { folio_put(f); }
bool vexfs_folio_uptodate(struct folio *f) { return folio_test_uptodate(f); }
void vexfs_folio_set_uptodate(struct folio *f) { folio_mark_uptodate(f); }
bool vexfs_folio_dirty(struct folio *f) { return folio_test_dirty(f); }
void vexfs_folio_wait_writeback(struct folio *f) { folio_wait_writeback(f); }
void vexfs_folio_start_writeback(struct folio *f) { folio_start_writeback(f); }
bool vexfs_folio_private(struct folio *f) { return folio_test_private(f); }
void vexfs_folio_attach(struct folio *f) { folio_attach_private(f, (void *)1); }
void vexfs_folio_detach(struct folio *f) { folio_detach_private(f); }
struct inode *vexfs_folio_inode(struct folio *f) { return f->mapping->host; }
struct folio *vexfs_lock_folio(struct inode *i, s64 pos) { return filemap_lock_folio(i->i_mapping, pos >> PAGE_SHIFT); }
struct folio *vexfs_begin_folio(struct inode *i, s64 pos, size_t len) { return __filemap_get_folio(i->i_mapping, pos >> PAGE_SHIFT, FGP_WRITEBEGIN | fgf_set_order(len), mapping_gfp_mask(i->i_mapping)); }
void vexfs_flush_dcache(struct folio *f) { flush_dcache_folio(f); }
size_t vexfs_copy_from_iter_atomic(struct folio *f, size_t at, size_t n, struct iov_iter *it) { return copy_folio_from_iter_atomic(f, at, n, it); }
struct folio *vexfs_readahead_folio(struct readahead_control *r) { return readahead_folio(r); }
struct inode *vexfs_readahead_inode(struct readahead_control *r) { return r->mapping->host; }
size_t vexfs_iter_count(struct iov_iter *it) { return iov_iter_count(it); }
size_t vexfs_copy_from_iter(void *to, size_t n, struct iov_iter *it) { return copy_from_iter(to, n, it); }
size_t vexfs_copy_to_iter(const void *from, size_t n, struct iov_iter *it) { return copy_to_iter(from, n, it); }
ssize_t vexfs_write_sync(struct kiocb *k, ssize_t n) { return n > 0 ? generic_write_sync(k, n) : n; }
void vexfs_start_pagefault(struct super_block *sb) { sb_start_pagefault(sb); }
void vexfs_end_pagefault(struct super_block *sb) { sb_end_pagefault(sb); }
bool vexfs_folio_lock(struct folio *f, struct inode *i) { folio_lock(f); if (f->mapping == i->i_mapping) return true; folio_unlock(f); return false; }
struct file *vexfs_vmf_file(struct vm_fault *v) { return v->vma->vm_file; }
bool vexfs_vmf_folio(struct vm_fault *v, struct folio **f) { *f = page_folio(v->page); return true; }
