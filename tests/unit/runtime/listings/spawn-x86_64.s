.intel_syntax noprefix
push rbx
push r12
mov rbx, rdx
mov r12, rcx
mov eax, 435
syscall
test rax, rax
jnz parent
loop:
mov rax,[rbx]
mov rdi,[rbx+8]
mov rsi,[rbx+16]
mov rdx,[rbx+24]
mov r10,[rbx+32]
mov r8,[rbx+40]
mov r9,[rbx+48]
test rax, rax
js check
syscall
mov [rbx+72], rax
# clone3: who has made a child goes on where the sixth argument says
cmp dword ptr [rbx], 435
jne expected
test rax, rax
jle expected
mov rbx, [rbx+48]
jmp loop
expected:
movsxd rcx, dword ptr [rbx+60]
test rcx, rcx
jz plain
cmp rax, rcx
je next
jmp failed
plain:
cmp rax, -4095
jae error
mov rcx, [rbx+64]
test rcx, rcx
jz pass
store:
mov rdx, [rcx]
test rdx, rdx
jz pass
mov [rdx], rax
add rcx, 8
jmp store
pass:
test byte ptr [rbx+56], 2
jz next
mov [rbx+88], rax
next:
add rbx, 80
jmp loop
error:
test byte ptr [rbx+56], 1
jnz next
failed:
mov [r12], rbx
mov edi, 127
mov eax, 231
syscall
check:
mov rax, [rdi]
and rax, rsi
cmp rax, rdx
sete al
movzx eax, al
cmp rax, r10
je failed
jmp next
parent:
pop r12
pop rbx
ret
