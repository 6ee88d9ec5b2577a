.intel_syntax noprefix
# prctl(PR_SET_DUMPABLE=4, 0)
mov eax, 157
push 4
pop rdi
xor esi, esi
syscall
# sigprocmask(SIG_BLOCK=0, &set, NULL, 8)
mov eax, 0x14002   # CHLD(17) = bit 16, TERM(15) = bit 14, INT(2) = bit 1
push rax
mov rbx, rsp
push 14
pop rax
xor edi, edi
mov rsi, rbx
xor edx, edx
push 8
pop r10
syscall
wait:
push 127
pop rax
inc eax   # 128 rt_sigtimedwait(set, NULL, NULL, 8)
mov rdi, rbx
xor esi, esi
xor edx, edx
push 8
pop r10
syscall
cmp eax, 15
je done
cmp eax, 2
je done
reap:
push 61
pop rax    # wait4(-1, NULL, WNOHANG, NULL)
push -1
pop rdi
xor esi, esi
push 1
pop rdx
xor r10d, r10d
syscall
test eax, eax
jg reap
jmp wait
done:
push 60
pop rax
xor edi, edi
syscall
