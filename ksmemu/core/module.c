/*
 * CPython glue, alone with Python.h: arguments, release of the GIL, -errno to OSError. What each function
 * does is documented in _core.pyi.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <malloc.h>
#include <structmember.h>
#include <sys/inotify.h>
#include <sys/vfs.h>

#include "core.h"

/* Ranges in one call of a walk; the loop goes on until the walk is done. */
#define RANGES 4096u

/* Blocks up to so many bytes (malloc takes no more for an answer), and so many of them, are kept when free. */
#define KEPT_BLOCK_BYTES (32 << 20)
#define KEPT_BYTES (256 << 20)

static PyObject *fail(int error, const char *call)
{
	PyObject *args = Py_BuildValue("(iN)", -error,
				       PyUnicode_FromFormat("%s: %s", call, strerror(-error)));

	if (args) {
		PyErr_SetObject(PyExc_OSError, args);
		Py_DECREF(args);
	}
	return NULL;
}

#define NOGIL(statement)                                                                           \
	do {                                                                                       \
		Py_BEGIN_ALLOW_THREADS;                                                            \
		statement;                                                                         \
		Py_END_ALLOW_THREADS;                                                              \
	} while (0)

static PyObject *done_or_fail(int error, const char *call)
{
	if (error)
		return fail(error, call);
	Py_RETURN_NONE;
}

/* ---- Memory: a buffer over real addresses -------------------------------------------------- */

struct memory {
	PyObject_HEAD
	Py_ssize_t exports;
	char *start;
	Py_ssize_t size;
	PyObject *owner; /* keeps the addresses mapped */
	PyObject *weakrefs;
};

static PyObject *memory_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
	static char *names[] = { "address", "length", "owner", NULL };
	unsigned long long address;
	Py_ssize_t size;
	PyObject *owner;
	struct memory *self;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "KnO", names, &address, &size, &owner))
		return NULL;
	self = (struct memory *)type->tp_alloc(type, 0);
	if (!self)
		return NULL;
	self->start = (char *)(uintptr_t)address;
	self->size = size;
	self->owner = Py_NewRef(owner);
	return (PyObject *)self;
}

static void memory_dealloc(struct memory *self)
{
	PyObject_GC_UnTrack(self);
	if (self->weakrefs)
		PyObject_ClearWeakRefs((PyObject *)self);
	Py_CLEAR(self->owner);
	Py_TYPE(self)->tp_free((PyObject *)self);
}

static int memory_traverse(struct memory *self, visitproc visit, void *arg)
{
	Py_VISIT(self->owner);
	return 0;
}

static int memory_getbuffer(struct memory *self, Py_buffer *view, int flags)
{
	int error = PyBuffer_FillInfo(view, (PyObject *)self, self->start, self->size, 0, flags);

	if (!error)
		self->exports++;
	return error;
}

static void memory_releasebuffer(struct memory *self, Py_buffer *view)
{
	(void)view;
	self->exports--;
}

static PyBufferProcs memory_buffer = {
	.bf_getbuffer = (getbufferproc)memory_getbuffer,
	.bf_releasebuffer = (releasebufferproc)memory_releasebuffer,
};

static PyMemberDef memory_members[] = {
	{ "address", T_ULONG, offsetof(struct memory, start), READONLY, NULL },
	{ "length", T_PYSSIZET, offsetof(struct memory, size), READONLY, NULL },
	{ "exports", T_PYSSIZET, offsetof(struct memory, exports), READONLY, NULL },
	{ NULL, 0, 0, 0, NULL },
};

static PyTypeObject memory_type = {
	PyVarObject_HEAD_INIT(NULL, 0).tp_name = "ksmemu._core.Memory",
	.tp_basicsize = sizeof(struct memory),
	.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
	.tp_new = memory_new,
	.tp_dealloc = (destructor)memory_dealloc,
	.tp_traverse = (traverseproc)memory_traverse,
	.tp_as_buffer = &memory_buffer,
	.tp_members = memory_members,
	.tp_weaklistoffset = offsetof(struct memory, weakrefs),
};

/* ---- Agent ----------------------------------------------------------------------------------- */

struct agent {
	PyObject_HEAD
	struct ksmemu_agent *agent; /* NULL once closed */
};

static PyObject *agent_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
	static char *names[] = { "control", "order",   "pool",	    "pool_bytes", "held",
				 "holder",  "pagemap", "directory", "label",	  "tracks",
				 "rfc2009", "secure",  NULL };
	struct ksmemu_descriptors fds;
	struct ksmemu_terms terms = { 0 };
	unsigned long long holder;
	Py_ssize_t pool_bytes;
	int tracks, rfc2009, secure, error;
	PyObject *directory;
	const char *label;
	struct agent *self;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "iiiniKiO&sppp", names, &fds.control,
					 &fds.order, &fds.pool, &pool_bytes, &fds.holder.file,
					 &holder, &fds.pagemap, PyUnicode_FSConverter, &directory,
					 &label, &tracks, &rfc2009, &secure))
		return NULL;
	self = (struct agent *)type->tp_alloc(type, 0);
	if (!self) {
		Py_DECREF(directory);
		return NULL;
	}
	terms.directory = PyBytes_AS_STRING(directory);
	(void)snprintf(terms.label, sizeof(terms.label), "%s", label);
	fds.holder.name = holder;
	terms.tracks = tracks;
	terms.rfc2009 = rfc2009;
	terms.secure = secure;
	NOGIL(error = ksmemu_agent_create(&fds, (size_t)pool_bytes, &terms, &self->agent));
	Py_DECREF(directory);
	if (error) {
		Py_DECREF(self);
		return fail(error, "agent");
	}
	return (PyObject *)self;
}

static PyObject *agent_close(struct agent *self, PyObject *unused)
{
	struct ksmemu_agent *agent = self->agent;

	(void)unused;
	self->agent = NULL;
	NOGIL(ksmemu_agent_destroy(agent));
	Py_RETURN_NONE;
}

static void agent_dealloc(struct agent *self)
{
	Py_XDECREF(agent_close(self, NULL));
	Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyObject *agent_is_alive(struct agent *self, PyObject *unused)
{
	(void)unused;
	return PyBool_FromLong(self->agent && ksmemu_agent_is_alive(self->agent));
}

static struct ksmemu_agent *opened(struct agent *self)
{
	if (!self->agent)
		PyErr_SetString(PyExc_ValueError, "agent is closed");
	return self->agent;
}

static PyObject *agent_wait(struct agent *self, PyObject *args)
{
	struct ksmemu_agent *agent = opened(self);
	unsigned int seconds;
	int error;

	if (!agent || !PyArg_ParseTuple(args, "I", &seconds))
		return NULL;
	NOGIL(error = ksmemu_agent_wait(agent, seconds));
	return PyBool_FromLong(!error);
}

static PyObject *agent_control(struct agent *self, PyObject *unused)
{
	struct ksmemu_agent *agent = opened(self);
	int fd;

	(void)unused;
	if (!agent)
		return NULL;
	NOGIL(fd = ksmemu_agent_control(agent));
	return fd < 0 ? fail(fd, "fcntl") : PyLong_FromLong(fd);
}

static PyObject *agent_own(struct agent *self, PyObject *args)
{
	struct ksmemu_agent *agent = opened(self);
	unsigned int id;
	int fd;

	if (!agent || !PyArg_ParseTuple(args, "I", &id))
		return NULL;
	NOGIL(fd = ksmemu_agent_own(agent, id));
	return fd < 0 ? fail(fd, "own") : PyLong_FromLong(fd);
}

static PyObject *agent_set_flags(struct agent *self, PyObject *args)
{
	struct ksmemu_agent *agent = opened(self);
	int merge_any, refuses;

	if (!agent || !PyArg_ParseTuple(args, "pp", &merge_any, &refuses))
		return NULL;
	NOGIL(ksmemu_agent_set_flags(agent, merge_any, refuses));
	Py_RETURN_NONE;
}

static PyObject *agent_add_space(struct agent *self, PyObject *args)
{
	struct ksmemu_agent *agent = opened(self);
	unsigned long long start, size;
	unsigned int id, node;
	int own, error;

	if (!agent || !PyArg_ParseTuple(args, "IKKIi", &id, &start, &size, &node, &own))
		return NULL;
	NOGIL(error = ksmemu_agent_add_space(agent, id, start, size, node, own));
	return done_or_fail(error, "add_space");
}

static PyObject *agent_remove_space(struct agent *self, PyObject *args)
{
	struct ksmemu_agent *agent = opened(self);
	unsigned int id;
	int error;

	if (!agent || !PyArg_ParseTuple(args, "I", &id))
		return NULL;
	NOGIL(error = ksmemu_agent_remove_space(agent, id));
	return done_or_fail(error, "munmap");
}

/* The advised ranges come as one buffer of (start, end) pairs. */
static size_t nr_ranges(const Py_buffer *advised)
{
	return (size_t)advised->len / sizeof(struct ksmemu_range);
}

static PyObject *agent_advise(struct agent *self, PyObject *args)
{
	struct ksmemu_agent *agent = opened(self);
	unsigned long long start, end;
	uintptr_t done = 0;
	unsigned int id;
	int adopt, error;
	Py_buffer advised;

	if (!agent || !PyArg_ParseTuple(args, "IKKpy*", &id, &start, &end, &adopt, &advised))
		return NULL;
	NOGIL(error = ksmemu_agent_advise(agent, id, start, end, adopt, advised.buf,
					  nr_ranges(&advised), &done));
	PyBuffer_Release(&advised);
	return Py_BuildValue("(Ki)", (unsigned long long)done, -error);
}

static PyObject *agent_withdraw(struct agent *self, PyObject *args)
{
	struct ksmemu_agent *agent = opened(self);
	Py_buffer advised;
	unsigned int id;
	int error;

	if (!agent || !PyArg_ParseTuple(args, "Iy*", &id, &advised))
		return NULL;
	NOGIL(error = ksmemu_agent_withdraw(agent, id, advised.buf, nr_ranges(&advised)));
	PyBuffer_Release(&advised);
	return done_or_fail(error, "withdraw");
}

static PyObject *agent_protect(struct agent *self, PyObject *args)
{
	struct ksmemu_agent *agent = opened(self);
	unsigned long long start, end;
	Py_buffer all;
	unsigned int id;
	int prot, error;

	if (!agent || !PyArg_ParseTuple(args, "IKKiy*", &id, &start, &end, &prot, &all))
		return NULL;
	NOGIL(error = ksmemu_agent_protect(agent, id, start, end, prot, all.buf,
					   (size_t)all.len / sizeof(struct ksmemu_protection)));
	PyBuffer_Release(&all);
	return done_or_fail(error, "mprotect");
}

/* What takes a space and a range of it, and nothing else. */
typedef int range_call(struct ksmemu_agent *agent, uint32_t id, uintptr_t start, uintptr_t end);

static PyObject *call_on_range(struct agent *self, PyObject *args, range_call *call,
			       const char *name)
{
	struct ksmemu_agent *agent = opened(self);
	unsigned long long start, end;
	unsigned int id;
	int error;

	if (!agent || !PyArg_ParseTuple(args, "IKK", &id, &start, &end))
		return NULL;
	NOGIL(error = call(agent, id, start, end));
	return done_or_fail(error, name);
}

static PyObject *agent_rehome(struct agent *self, PyObject *args)
{
	return call_on_range(self, args, ksmemu_agent_rehome, "rehome");
}

static PyObject *agent_unadvised(struct agent *self, PyObject *args)
{
	return call_on_range(self, args, ksmemu_agent_unadvised, "unadvised");
}

static PyObject *agent_tell(struct agent *self, PyObject *args)
{
	struct ksmemu_agent *agent = opened(self);
	unsigned long long start, end;
	unsigned int id, kind, value;
	int error;

	if (!agent || !PyArg_ParseTuple(args, "IIKKI", &id, &kind, &start, &end, &value))
		return NULL;
	NOGIL(error = ksmemu_agent_tell(agent, id, kind, start, end, value));
	return done_or_fail(error, "tell");
}

static PyObject *agent_remember(struct agent *self, PyObject *args)
{
	struct ksmemu_agent *agent = opened(self);
	Py_buffer notes;
	unsigned int id;
	int error;

	if (!agent || !PyArg_ParseTuple(args, "Iy*", &id, &notes))
		return NULL;
	NOGIL(error = ksmemu_agent_remember(agent, id, notes.buf,
					    (size_t)notes.len / sizeof(struct ksmemu_note)));
	PyBuffer_Release(&notes);
	return done_or_fail(error, "remember");
}

static PyObject *agent_unmap(struct agent *self, PyObject *args)
{
	struct ksmemu_agent *agent = opened(self);
	unsigned long long start, end;
	Py_buffer advised;
	unsigned int id;
	int error;

	if (!agent || !PyArg_ParseTuple(args, "IKKy*", &id, &start, &end, &advised))
		return NULL;
	NOGIL(error = ksmemu_agent_unmap(agent, id, start, end, advised.buf, nr_ranges(&advised)));
	PyBuffer_Release(&advised);
	return done_or_fail(error, "munmap");
}

static PyMethodDef agent_methods[] = {
	{ "close", (PyCFunction)agent_close, METH_NOARGS, NULL },
	{ "is_alive", (PyCFunction)agent_is_alive, METH_NOARGS, NULL },
	{ "wait", (PyCFunction)agent_wait, METH_VARARGS, NULL },
	{ "control", (PyCFunction)agent_control, METH_NOARGS, NULL },
	{ "own", (PyCFunction)agent_own, METH_VARARGS, NULL },
	{ "set_flags", (PyCFunction)agent_set_flags, METH_VARARGS, NULL },
	{ "add_space", (PyCFunction)agent_add_space, METH_VARARGS, NULL },
	{ "remove_space", (PyCFunction)agent_remove_space, METH_VARARGS, NULL },
	{ "advise", (PyCFunction)agent_advise, METH_VARARGS, NULL },
	{ "withdraw", (PyCFunction)agent_withdraw, METH_VARARGS, NULL },
	{ "protect", (PyCFunction)agent_protect, METH_VARARGS, NULL },
	{ "rehome", (PyCFunction)agent_rehome, METH_VARARGS, NULL },
	{ "unadvised", (PyCFunction)agent_unadvised, METH_VARARGS, NULL },
	{ "tell", (PyCFunction)agent_tell, METH_VARARGS, NULL },
	{ "remember", (PyCFunction)agent_remember, METH_VARARGS, NULL },
	{ "unmap", (PyCFunction)agent_unmap, METH_VARARGS, NULL },
	{ NULL, NULL, 0, NULL },
};

static PyTypeObject agent_type = {
	PyVarObject_HEAD_INIT(NULL, 0).tp_name = "ksmemu._core.Agent",
	.tp_basicsize = sizeof(struct agent),
	.tp_flags = Py_TPFLAGS_DEFAULT,
	.tp_new = agent_new,
	.tp_dealloc = (destructor)agent_dealloc,
	.tp_methods = agent_methods,
};

/* ---- walks: everything in [start, end) as one bytes object of (start, end) pairs ------------ */

typedef int walk_step(int fd, uint64_t *start, uint64_t end, struct ksmemu_range *ret, size_t max,
		      size_t *ret_nr);

static int private_step(int fd, uint64_t *start, uint64_t end, struct ksmemu_range *ret, size_t max,
			size_t *ret_nr)
{
	return ksmemu_find_private(fd, false, start, end, ret, max, ret_nr);
}

static PyObject *walk(PyObject *args, walk_step *step, const char *call)
{
	struct ksmemu_range found[RANGES];
	unsigned long long from, end;
	PyObject *result;
	uint64_t at;
	size_t nr;
	int fd, error;

	if (!PyArg_ParseTuple(args, "iKK", &fd, &from, &end))
		return NULL;
	at = from;
	result = PyByteArray_FromStringAndSize(NULL, 0);
	while (result && at < end) {
		Py_ssize_t old = PyByteArray_GET_SIZE(result);

		nr = 0;
		NOGIL(error = step(fd, &at, end, found, RANGES, &nr));
		if (error) {
			Py_DECREF(result);
			return fail(error, call);
		}
		if (PyByteArray_Resize(result, old + (Py_ssize_t)(nr * sizeof(found[0]))) < 0)
			Py_CLEAR(result);
		else
			memcpy(PyByteArray_AS_STRING(result) + old, found, nr * sizeof(found[0]));
	}
	return result;
}

static PyObject *py_harvest(PyObject *self, PyObject *args)
{
	(void)self;
	return walk(args, ksmemu_harvest, "PAGEMAP_SCAN");
}

static PyObject *py_find_private(PyObject *self, PyObject *args)
{
	(void)self;
	return walk(args, private_step, "PAGEMAP_SCAN");
}

static PyObject *py_data_extents(PyObject *self, PyObject *args)
{
	(void)self;
	return walk(args, ksmemu_data_extents, "lseek");
}

/* ---- reading pages ------------------------------------------------------------------------- */

static PyObject *py_checksum_pages(PyObject *self, PyObject *args)
{
	unsigned long long seed;
	Py_buffer pages, out;
	int fd, error;

	(void)self;
	if (!PyArg_ParseTuple(args, "iy*Kw*", &fd, &pages, &seed, &out))
		return NULL;
	if (out.len != pages.len)
		error = -EINVAL;
	else
		NOGIL(error = ksmemu_checksum_pages(
			      fd, pages.buf, (size_t)pages.len / sizeof(uint64_t), seed, out.buf));
	PyBuffer_Release(&pages);
	PyBuffer_Release(&out);
	return done_or_fail(error, "pread");
}

static PyObject *py_fill_frames(PyObject *self, PyObject *args)
{
	Py_buffer pages, frames, out;
	unsigned long long seed;
	int fd, pool, error;

	(void)self;
	if (!PyArg_ParseTuple(args, "iy*iy*Kw*", &fd, &pages, &pool, &frames, &seed, &out))
		return NULL;
	if (frames.len != pages.len || out.len != pages.len)
		error = -EINVAL;
	else
		NOGIL(error = ksmemu_fill_frames(fd, pages.buf, pool, frames.buf,
						 (size_t)pages.len / sizeof(uint64_t), seed,
						 out.buf));
	PyBuffer_Release(&pages);
	PyBuffer_Release(&frames);
	PyBuffer_Release(&out);
	return done_or_fail(error, "pwrite");
}

static PyObject *py_punch(PyObject *self, PyObject *args)
{
	unsigned long long offset, size;
	int fd, error;

	(void)self;
	if (!PyArg_ParseTuple(args, "iKK", &fd, &offset, &size))
		return NULL;
	NOGIL(error = ksmemu_punch(fd, (off_t)offset, size));
	return done_or_fail(error, "fallocate");
}

/* ---- mappings before an agent is there ----------------------------------------------------- */

static PyObject *py_reserve(PyObject *self, PyObject *arg)
{
	uintptr_t start;
	size_t size = PyLong_AsSize_t(arg);
	int error;

	(void)self;
	if (PyErr_Occurred())
		return NULL;
	error = ksmemu_reserve(size, &start);
	return error ? fail(error, "mmap") : PyLong_FromSize_t(start);
}

static PyObject *map_call(PyObject *args, int (*map)(uintptr_t, size_t), const char *call)
{
	unsigned long long start, size;
	int error;

	if (!PyArg_ParseTuple(args, "KK", &start, &size))
		return NULL;
	NOGIL(error = map(start, size));
	return done_or_fail(error, call);
}

static PyObject *py_unreserve(PyObject *self, PyObject *args)
{
	(void)self;
	return map_call(args, ksmemu_unreserve, "munmap");
}

static PyObject *py_map_ordinary(PyObject *self, PyObject *args)
{
	(void)self;
	return map_call(args, ksmemu_map_ordinary, "mmap");
}

static PyObject *py_map_nothing(PyObject *self, PyObject *args)
{
	(void)self;
	return map_call(args, ksmemu_map_nothing, "mmap");
}

static PyObject *py_protect(PyObject *self, PyObject *args)
{
	unsigned long long start, size;
	int prot, error;

	(void)self;
	if (!PyArg_ParseTuple(args, "KKi", &start, &size, &prot))
		return NULL;
	NOGIL(error = ksmemu_protect(start, size, prot));
	return done_or_fail(error, "mprotect");
}

/* ---- probes, files, malloc and inotify ------------------------------------------------------------- */

static PyObject *py_probe_userfaultfd(PyObject *self, PyObject *unused)
{
	uint64_t features;
	bool user_mode;
	int fd = ksmemu_uffd_open(0, &features, &user_mode);

	(void)self;
	(void)unused;
	if (fd < 0)
		return fail(fd, "userfaultfd");
	close(fd);
	return Py_BuildValue("(KO)", (unsigned long long)features, user_mode ? Py_True : Py_False);
}

static PyObject *py_probe_pagemap_scan(PyObject *self, PyObject *unused)
{
	(void)self;
	(void)unused;
	return done_or_fail(ksmemu_probe_pagemap_scan(), "PAGEMAP_SCAN");
}

static PyObject *py_file_system(PyObject *self, PyObject *arg)
{
	int fd = (int)PyLong_AsLong(arg);
	struct statfs found;

	(void)self;
	if (PyErr_Occurred())
		return NULL;
	if (fstatfs(fd, &found) < 0)
		return fail(-errno, "fstatfs");
	return PyLong_FromLong(found.f_type);
}

static PyObject *py_keep_memory(PyObject *self, PyObject *unused)
{
	(void)self;
	(void)unused;
	mallopt(M_MMAP_THRESHOLD, KEPT_BLOCK_BYTES);
	mallopt(M_TRIM_THRESHOLD, KEPT_BYTES);
	Py_RETURN_NONE;
}

static PyObject *py_return_memory(PyObject *self, PyObject *unused)
{
	(void)self;
	(void)unused;
	malloc_trim(0);
	Py_RETURN_NONE;
}

static PyObject *py_inotify_init(PyObject *self, PyObject *unused)
{
	int fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);

	(void)self;
	(void)unused;
	return fd < 0 ? fail(-errno, "inotify_init1") : PyLong_FromLong(fd);
}

static PyObject *py_inotify_add_watch(PyObject *self, PyObject *args)
{
	unsigned int mask;
	const char *path;
	int fd, watch;

	(void)self;
	if (!PyArg_ParseTuple(args, "isI", &fd, &path, &mask))
		return NULL;
	watch = inotify_add_watch(fd, path, mask);
	return watch < 0 ? fail(-errno, "inotify_add_watch") : PyLong_FromLong(watch);
}

static PyMethodDef functions[] = {
	{ "harvest", py_harvest, METH_VARARGS, NULL },
	{ "find_private", py_find_private, METH_VARARGS, NULL },
	{ "data_extents", py_data_extents, METH_VARARGS, NULL },
	{ "checksum_pages", py_checksum_pages, METH_VARARGS, NULL },
	{ "fill_frames", py_fill_frames, METH_VARARGS, NULL },
	{ "punch", py_punch, METH_VARARGS, NULL },
	{ "reserve", py_reserve, METH_O, NULL },
	{ "unreserve", py_unreserve, METH_VARARGS, NULL },
	{ "map_ordinary", py_map_ordinary, METH_VARARGS, NULL },
	{ "map_nothing", py_map_nothing, METH_VARARGS, NULL },
	{ "protect", py_protect, METH_VARARGS, NULL },
	{ "probe_userfaultfd", py_probe_userfaultfd, METH_NOARGS, NULL },
	{ "probe_pagemap_scan", py_probe_pagemap_scan, METH_NOARGS, NULL },
	{ "file_system", py_file_system, METH_O, NULL },
	{ "keep_memory", py_keep_memory, METH_NOARGS, NULL },
	{ "return_memory", py_return_memory, METH_NOARGS, NULL },
	{ "inotify_init", py_inotify_init, METH_NOARGS, NULL },
	{ "inotify_add_watch", py_inotify_add_watch, METH_VARARGS, NULL },
	{ NULL, NULL, 0, NULL },
};

static struct PyModuleDef module = {
	PyModuleDef_HEAD_INIT,
	.m_name = "_core",
	.m_size = -1,
	.m_methods = functions,
};

PyMODINIT_FUNC PyInit__core(void);
PyMODINIT_FUNC PyInit__core(void)
{
	PyObject *core = PyModule_Create(&module);

	if (!core)
		return NULL;
	if (PyModule_AddType(core, &memory_type) < 0 || PyModule_AddType(core, &agent_type) < 0 ||
	    PyModule_AddIntConstant(core, "ORDER_MAX_PAGES", KSMEMU_ORDER_MAX_PAGES) < 0 ||
	    PyModule_AddIntConstant(core, "WINDOW_PAGES", KSMEMU_WINDOW_PAGES) < 0 ||
	    PyModule_AddIntConstant(core, "RENEW_PAGES", KSMEMU_RENEW_PAGES) < 0 ||
	    PyModule_AddIntConstant(core, "WIRE_VERSION", KSMEMU_WIRE_VERSION) < 0) {
		Py_DECREF(core);
		return NULL;
	}
	return core;
}
