"""Speed: workloads on ksmemu and on the kernel's own KSM, alternating, side by side."""
